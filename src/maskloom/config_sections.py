"""The sections of a configuration that have one form in every run, with their defaults.

A section is a block of the YAML file, and checks what concerns it alone. `config` has the sections that depend on the
architecture and the optimizer, and puts all of them together.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NamedTuple, cast

import pydantic
from pydantic import Discriminator, Field, NonNegativeFloat, PositiveFloat, PositiveInt, Tag

from maskloom.config_values import (
    MOST_STEPS,
    Few,
    Folder,
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

LARGEST_WEIGHT = 1e6  # only the ratios of weights matter
ONE, SEVERAL = "<one>", "<several>"  # the two forms of data.train; pydantic shows these names in the place of an error


class Corpus(Section):
    """One of several corpora that a run mixes."""

    path: str
    """Folder or URL that holds `index.json`."""
    weight: Annotated[float, Field(gt=0.0, le=LARGEST_WEIGHT)] = 1.0
    """Share of the rows, relative to the other corpora. `phases.N.weights` replaces it for one phase."""


class Storage(Section):
    """How the bytes of shards are fetched and kept. Nothing here changes which rows a run sees."""

    timeout_s: PositiveFloat = 30.0
    """Longest wait for a connection, or for the next bytes of an answer."""
    attempts: Few = 6
    """A read fails after this many attempts in a row that bring no new byte. The wait between attempts grows."""
    cache: str | None = None
    """Folder on this machine for blocks from the network. All processes share it."""
    cache_bytes: PositiveInt = 32 << 30
    """Size limit of the cache. The least recently used blocks are removed first."""


class Data(Section):
    train: Annotated[
        Annotated[str, Tag(ONE)] | Annotated[tuple[Corpus, ...], Field(min_length=1), Tag(SEVERAL)],
        Discriminator(lambda given: ONE if isinstance(given, str) else SEVERAL),
    ]
    """Folder or URL that holds `index.json`, as `maskloom shards` and `maskloom index` write it. Or a list of `path` and
    `weight`: their rows are mixed."""
    lanes: RowCount | None = None
    """Virtual readers: the largest number of ranks that this run can ever have. Left out: the largest common divisor of all
    global batches that is at most 64, and at most a sixteenth of the blocks of the largest corpus."""
    workers: Annotated[int, Field(ge=0, le=1 << 12)] = 1
    """Reader processes of each rank. With 0 the training process reads."""
    prefetch_steps: Few = 4
    """Steps that each reader process prepares ahead."""
    on_bad_data: Literal["raise", "skip"] = "raise"
    """What happens at a block that differs from what was indexed: `raise` ends the run; `skip` skips, counts and lists it."""
    max_bad_share: Share = 0.001
    """Largest share of the blocks read that may be skipped. One is always allowed; beyond that the run ends."""
    storage: Storage = Storage()

    @pydantic.field_validator("train", mode="before")
    @classmethod
    def _one_or_several(cls, given: object) -> object:
        if not isinstance(given, str | list | tuple) or not given:
            raise ValueError(f"{given!r} is neither a folder or URL nor a list of {{path: ..., weight: ...}}")
        return given

    @pydantic.field_validator("train")
    @classmethod
    def _each_once(cls, train: str | tuple[Corpus, ...]) -> str | tuple[Corpus, ...]:
        paths = [] if isinstance(train, str) else [corpus.path for corpus in train]
        twice = next((path for place, path in enumerate(paths) if path in paths[:place]), None)
        if twice is not None:
            raise ValueError(f"{twice} is listed twice: list it once, with the sum of the weights")
        return train

    @property
    def corpora(self) -> tuple[Corpus, ...]:
        """The corpora as a list, even if only one path is given."""
        return (Corpus(path=self.train),) if isinstance(self.train, str) else self.train


class Masking(Section):
    rate: PositiveShare = 0.15
    """Share of a row's tokens that are predicted. Special and protected tokens do not count."""
    final_rate: PositiveShare | None = None
    """Rate at the end of the run. The rate moves there linearly with the step. Left out: it stays the same.
    `phases.N.mask_rate` replaces both for one phase."""
    unit: Literal["token", "whole_word", "span"] = "token"
    """What is masked together: single tokens, whole words, or spans of whole words."""
    draw: Literal["exact", "bernoulli"] = "exact"
    """`exact` predicts the share `rate` of each row, rounded. `bernoulli` picks each unit with probability `rate`, up to a
    limit for each row."""
    span_p: PositiveShare = 0.2
    """Parameter of the geometric distribution of span lengths, in words (SpanBERT's)."""
    span_max_words: PositiveInt = 10
    """Longest span. The distribution is cut there and renormalised. A value above 4096 becomes the slots of a row, or 4096 if
    they are fewer."""
    replace_unit: Literal["token", "unit"] = "token"
    """What decides between the mask, a random token and no change: each `token` alone, or the `unit` as a whole (as in
    SpanBERT)."""
    protected: tuple[str, ...] = ()
    """Tokens of the vocabulary that are never predicted and never drawn. Special tokens and `[unused*]` always are such."""
    mask_share: Share = 0.8
    """Share of the predicted tokens that become the mask."""
    random_share: Share = 0.1
    """Share of the predicted tokens that become a random token. The rest stay as they are."""

    @pydantic.model_validator(mode="after")
    def _shares(self) -> Masking:
        if self.mask_share + self.random_share > 1.0:
            raise ValueError(
                f"mask_share {self.mask_share} + random_share {self.random_share} is more than 1: lower one of them"
            )
        return self


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


class Probe(Section):
    """Labelled texts, to see with each evaluation what the encoder knows of the labels. It does not learn from them: a logistic
    regression reads them off its vectors."""

    data: Folder
    """File with labelled texts (.csv, .tsv, .jsonl, also .gz and .zst, or .parquet), or a folder that `datasets` saved."""
    test: Folder | None = None
    """Another one, whose texts are tested. Left out: a fifth of `data`, chosen by the hash of the text."""
    text: str | None = None
    """Column of the text. Left out: guessed from the names."""
    pair: str | None = None
    """Column of the second text of a pair."""
    label: str | None = None
    """Column of the label. Left out: guessed from the names."""
    most_examples: Steps = 2000
    """Most examples to learn from, and a quarter of it to test. Of more, those with the smallest hash are taken."""
    every_steps: Steps | None = None
    """Steps between probes, a multiple of `evaluation.every_steps`. Left out: with each evaluation."""


class Evaluation(Section):
    """The loss on held-out documents."""

    every_steps: StepsOrNone = 0
    """Steps between evaluations; 0 for none."""
    seq_len: SeqLen | None = None
    """Token slots of a row. Left out: those of the last phase."""
    mask_rate: PositiveShare = 0.15
    """Share of the tokens that are predicted."""
    micro_batch_rows: RowCount = 32
    """Rows that a rank runs forward at once."""
    patience: Few | None = None
    """End the run early if so many evaluations in a row bring no new lowest loss. Left out: never."""
    min_delta: Annotated[float, Field(ge=0.0)] = 0.0
    """For `patience` a loss is a new lowest one if it is lower by more than this, in nats a token."""

    probe: Probe | None = None
    """Labelled texts to probe the encoder with."""

    @pydantic.model_validator(mode="after")
    def _go_together(self) -> Evaluation:
        wrong = []
        if self.min_delta and self.patience is None:
            wrong.append(f"min_delta {self.min_delta:g} means nothing without patience: remove it, or set patience")
        probes = self.probe.every_steps if self.probe else None
        if self.every_steps and probes and probes % self.every_steps:
            wrong.append(
                f"probe.every_steps {probes} is not a multiple of every_steps {self.every_steps}: a probe goes with an "
                "evaluation; change one of them"
            )
        if wrong:
            raise ValueError("\n".join(wrong))
        return self


class Checkpoint(Section):
    """When checkpoints are written, and which are kept."""

    every_steps: StepsOrNone = 500
    """Steps between checkpoints; 0 writes one at the end only."""
    keep_last: Annotated[int, Field(ge=2, le=MOST_STEPS)] = 2
    """Number of newest checkpoints to keep. It is at least 2: if the newest is damaged, the run resumes from the other."""
    keep_every_steps: Steps | None = None
    """Checkpoints at multiples of this step are kept for good."""
    keep_best: bool = False
    """Keep the checkpoint with the lowest held-out loss. An evaluation with a new lowest loss makes a checkpoint due."""
    background: bool = True
    """Write from a copy of the state while training continues. If memory has no room for the copy, training waits."""


class Guard(Section):
    """Refuses steps that would spoil the weights. Their gradients are dropped and counted."""

    spike_sigma: PositiveFloat | None = None
    """Refuse a step if its loss is this many standard deviations above the mean of the last `window_steps` (OLMo 2 does so,
    with 6). Left out: refuse a step only if its loss or its gradients are not finite."""
    window_steps: Annotated[int, Field(ge=8, le=1 << 20)] = 128
    """Steps of the phase that a loss is compared with. Before there are so many, no loss counts as a spike."""
    skips_before_rollback: Few = 3
    """After this many refused steps in a row, the run rolls back to its last checkpoint and skips their data."""
    rollbacks: StepsOrNone = 2
    """Rollbacks to the same checkpoint before the run ends."""


class Timeouts(Section):
    """How long a rank waits for the others before it ends the run. The logs then hold the stacks of all ranks."""

    start_s: PositiveFloat = 1800.0
    """Longest wait until the first step is done, and while a checkpoint is written or read."""
    train_s: PositiveFloat = 600.0
    """Longest wait between two micro-batches of any rank."""


class Logging(Section):
    """What is logged, and how often."""

    every_steps: Steps = 10
    """Steps between lines in metrics.jsonl, TensorBoard and the terminal."""
    peak_tflops: PositiveFloat | None = None
    """Peak of a rank's device in TFLOP/s; `mfu` is a share of it. Left out: a GPU's data sheet, or a measurement at the start.
    A CPU has no `mfu` then."""


class Engine(Section):
    """How a step is computed: precision, ZeRO stage, kernels and communication."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto` is bf16 on a GPU and fp32 on a CPU."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage. Stage 1 spreads the optimizer state over the ranks, 2 also the gradients, 3 also the parameters."""
    kernels: Literal["auto", "eager", "compile", "onednn"] = "auto"
    """`compile` lets torch.compile fuse forward and backward: of the whole model, or layer by layer at stage 3. Each start then
    takes a minute more, and needs a C compiler (C++ on CPUs). `onednn` is for CPUs: products by oneDNN instead of MKL. `auto` is
    compile on a GPU if possible. On a CPU it is onednn if that is known to be faster (AMD with AVX-512, models of 256 and wider),
    else eager."""
    deterministic: bool = False
    """Use only operators whose results never vary. GPUs are slower then, and losses repeat bit for bit on the same hardware,
    versions and number of ranks. On a CPU they do so anyway."""
    activation_checkpointing: bool = False
    """Keep only the input of each layer, and compute the layer again in the backward: less memory, a third more arithmetic."""
    reduce: Literal["step", "micro_batch"] = "step"
    """When gradients are summed over the ranks: once a step, or after every micro-batch. Stages 0 and 1 always do it once a
    step. At stages 2 and 3, `step` sends less by a factor of the micro-batches of a step, but each rank holds whole gradients.
    `micro_batch` holds a part of them, and can send it during the backward (`overlap`)."""
    reduce_precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format in which gradients are sent and summed. `auto` is `precision`. fp16 needs precision fp16."""
    overlap: bool | None = None
    """Send gradients during the backward (stages 1 to 3). Left out: on several GPUs, if the stage can."""

    @pydantic.model_validator(mode="after")
    def _communication(self) -> Engine:
        wrong = []
        if self.reduce == "micro_batch" and self.zero_stage < 2:
            wrong.append(
                f"reduce micro_batch needs zero_stage 2 or 3: stage {self.zero_stage} holds whole gradients, and sums them over "
                "the ranks once a step. Set engine.reduce=step"
            )
        if self.overlap and self.zero_stage == 0:
            wrong.append(
                "overlap needs zero_stage 1, 2 or 3: stage 0 sends gradients after the backward. Set engine.overlap=false"
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
