"""The phases of a run: their lengths, batches and rates, and the schedules of the learning rate that they begin.

A phase or `optimizer` sets a schedule. `Stretch` is the part of a run that one schedule spans.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NamedTuple, cast

import pydantic
from pydantic import Field, NonNegativeFloat, PositiveFloat

from maskloom.config_values import (
    LARGEST_WEIGHT,
    PositiveShare,
    RowCount,
    Section,
    SeqLen,
    Share,
    Steps,
    StepsOrNone,
    StepsUntilTokens,
    Theta,
    Tokens,
    check_length,
)


class BatchWarmup(Section):
    """The global batch of a phase grows linearly with the step, in multiples of `data.lanes` rows.

    Early in training a small batch learns more from each token (McCandlish et al., 2018). GPT-3 grew its batch in this way
    (Brown et al., 2020).
    """

    from_rows: RowCount
    """Global batch of the phase's first step, in rows."""
    steps: StepsUntilTokens = cast(int, None)  # which it never is in a RunConfig
    """Steps until `global_batch_rows` is reached."""
    tokens: Tokens | None = Field(default=None, exclude=True)
    """Instead of `steps`: token slots until then. The least number of steps that have so many. Needs `data.lanes`."""

    @pydantic.model_validator(mode="after")
    def _one_length(self) -> BatchWarmup:
        return check_length(self, "steps", "tokens", is_needed=True)


Schedule = Literal["linear", "cosine", "wsd", "polynomial", "constant", "1-sqrt"]
"""How the learning rate falls after the warm-up."""


def shape_faults(
    schedule: Schedule,
    decay_steps: int | None,
    power: float | None,
    final_lr_share: float | None,
    decay_tokens: int | None = None,
) -> list[str]:
    """What is missing for a schedule, or means nothing to it."""
    wrong = []
    if schedule == "constant" and final_lr_share:
        wrong.append(f"final_lr_share {final_lr_share} means nothing for schedule constant: remove it")
    if decay_tokens is not None and schedule not in ("wsd", "1-sqrt"):
        wrong.append(f"decay_tokens means nothing for schedule {schedule}: remove it, or set schedule to wsd or 1-sqrt")
    for key, value, example, needed_by, taken_by in (
        ("decay_steps", decay_steps, "a tenth of the run's steps", "wsd", ("wsd", "1-sqrt")),
        ("power", power, "0.5", "polynomial", ("polynomial",)),
    ):
        if value is not None and schedule not in taken_by:
            set_to = " or ".join(taken_by)
            wrong.append(f"{key} means nothing for schedule {schedule}: remove it, or set schedule to {set_to}")
        if value is None and schedule == needed_by and not (key == "decay_steps" and decay_tokens):
            wrong.append(f"schedule {schedule} needs {key}: set it, for example to {example}")
    return wrong


class RewarmUp(Section):
    """The schedule of the learning rate starts again with a phase, as in the second phase of You et al. (2019)."""

    lr: PositiveFloat
    """Highest learning rate from here on, instead of `optimizer.lr`."""
    warmup_steps: StepsOrNone = 0
    """Steps of linear warm-up from 0, from the first step of the phase."""
    warmup_tokens: Tokens | None = Field(default=None, exclude=True)
    """Instead of `warmup_steps`: token slots. The least number of steps that have so many."""

    schedule: Schedule | None = None
    """How the rate falls after the warm-up. Left out: `schedule`, `decay_steps` and `power` of `optimizer`."""
    final_lr_share: Share | None = None
    """Share of `lr` that the decay goes to. Left out: `optimizer.final_lr_share`."""
    decay_steps: Steps | None = None
    """Of this schedule, as `optimizer.decay_steps`."""
    decay_tokens: Tokens | None = Field(default=None, exclude=True)
    """Of this schedule, as `optimizer.decay_tokens`."""
    power: PositiveFloat | None = None
    """Of this schedule, as `optimizer.power`."""

    @pydantic.model_validator(mode="after")
    def _shape(self) -> RewarmUp:
        if self.schedule is not None:
            wrong = shape_faults(self.schedule, self.decay_steps, self.power, self.final_lr_share, self.decay_tokens)
        else:
            given = [name for name in ("decay_steps", "decay_tokens", "power") if getattr(self, name) is not None]
            wrong = [f"{name} needs schedule beside it: set it, or remove {name}" for name in given]
        if wrong:
            raise ValueError("\n".join(wrong))
        check_length(self, "decay_steps", "decay_tokens")
        return check_length(self, "warmup_steps", "warmup_tokens")


class Phase(Section):
    """A part of the run with one sequence length and one global batch."""

    fields_of_model: ClassVar[tuple[str, ...]] = ("global_rope_theta", "rope_theta")
    """The fields that also are fields of the model, in architectures that have them."""

    steps: StepsUntilTokens = cast(int, None)  # which it never is in a RunConfig
    """Optimizer steps."""
    tokens: Tokens | None = Field(default=None, exclude=True)
    """Instead of `steps`: token slots, padding included. The least number of steps that have so many; a growing batch is
    counted as it grows, and then `data.lanes` is needed."""
    seq_len: SeqLen = 128
    """Token slots of a row."""
    global_batch_rows: RowCount = 256
    """Rows of an optimizer step over all ranks. The number of micro-batches follows from the number of ranks."""
    micro_batch_rows: RowCount = 32
    """Most rows that a rank runs forward and backward at once."""
    mask_rate: PositiveShare | None = None
    """Share of the tokens that are predicted in this phase, instead of `masking.rate` and `masking.final_rate`."""
    weights: tuple[Annotated[float, Field(ge=0.0, le=LARGEST_WEIGHT)], ...] | None = None
    """Weights of the corpora in this phase, in the order of `data.train`."""
    batch_warmup: BatchWarmup | None = None
    """Growth of the global batch at the start of the phase. Left out: it is `global_batch_rows` from the first step."""
    global_rope_theta: Theta | None = None
    """Base of the rotary frequencies in the layers that see the whole piece, from this phase on. A larger one is for longer
    rows. Only for architectures that have `model.global_rope_theta`. Left out: as in the phase before, or in the model."""
    rope_theta: Theta | None = None
    """The same for architectures that have one base for all layers, `model.rope_theta`."""
    rewarm_up: RewarmUp | None = None
    """A new schedule from this phase on. Left out: the schedule continues."""
    gradient_clipping: NonNegativeFloat | None = None
    """Largest global gradient norm in this phase, instead of `optimizer.gradient_clipping`; 0 does not clip."""

    @property
    def changes_of_model(self) -> dict[str, Any]:
        """Fields of the model -> the values that they have from this phase on."""
        return {name: value for name in self.fields_of_model if (value := getattr(self, name)) is not None}

    @pydantic.model_validator(mode="after")
    def _one_length(self) -> Phase:
        return check_length(self, "steps", "tokens", is_needed=True)

    @pydantic.model_validator(mode="after")
    def _growth(self) -> Phase:
        if not self.batch_warmup:
            return self
        wrong = []
        if self.batch_warmup.from_rows >= self.global_batch_rows:
            wrong.append(
                f"batch_warmup.from_rows {self.batch_warmup.from_rows} must be less than global_batch_rows "
                f"{self.global_batch_rows}: lower it, or leave batch_warmup out"
            )
        is_known = self.steps is not None and self.batch_warmup.steps is not None  # `RunConfig` asks again
        if is_known and self.batch_warmup.steps >= self.steps:
            wrong.append(
                f"batch_warmup.steps {self.batch_warmup.steps} must be less than the phase's {self.steps} steps, so that "
                "global_batch_rows is reached"
            )
        if wrong:
            raise ValueError("\n".join(wrong))
        return self


class Stretch(NamedTuple):
    """A part of the run with one schedule of the learning rate. It is one phase or several.

    Attributes:
        phase: number of its first phase.
        first_step: steps of the run before it.
        steps: its length.
        lr: its highest learning rate.
        warmup_steps: steps of its warm-up.
        own: the phase's own schedule; None for that of `optimizer`.
        final_lr_share: the phase's own; None for that of `optimizer`.
    """

    phase: int
    first_step: int
    steps: int
    lr: float
    warmup_steps: int
    own: RewarmUp | None = None
    final_lr_share: float | None = None
