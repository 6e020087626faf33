"""The held-out losses of a run so far: which evaluation was the best, and whether to wait for a better one.

    `best`          the step with the lowest loss: its checkpoint is kept (`checkpoint.keep_best`)
    `is_exhausted`  no lower loss in the last evaluations: the run ends early (`evaluation.patience`; Prechelt, 1998)

Both are pure functions of the losses. Every checkpoint has the losses up to its step in its data.json. So a resumed run decides
as the run would have that was never stopped, and a roll-back forgets what lies beyond. A fork begins with none.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from maskloom.config import Evaluation
from maskloom.errors import UserError
from maskloom.files import parse_json, read_lines, read_plain
from maskloom.scalars import is_count


@dataclass(frozen=True)
class Evaluated:
    """One evaluation. `loss` is None if it was not finite."""

    step: int
    loss: float | None

    @property
    def name(self) -> str:
        """Of its checkpoint's folder."""
        return f"step-{self.step:08d}"


@dataclass(frozen=True)
class HeldOut:
    """The evaluations of a run up to a step.

    Attributes:
        seq_len, mask_rate: of the evaluations. Losses at other ones do not compare.
        evaluated: all of them, oldest first.
        total_steps: of the run.
        patient_from: evaluations up to this step do not use up patience.
    """

    seq_len: int
    mask_rate: float
    total_steps: int
    evaluated: tuple[Evaluated, ...] = ()
    patient_from: int = 0

    @staticmethod
    def of(settings: Evaluation, total_steps: int) -> HeldOut:
        """Before the first evaluation. `settings` has its sequence length filled in."""
        assert settings.seq_len is not None, "RunConfig.evaluation_filled fills it"
        return HeldOut(settings.seq_len, settings.mask_rate, total_steps)

    def compares(self, other: HeldOut) -> bool:
        """Whether the losses of both are of the same masks over rows of the same length."""
        return (self.seq_len, self.mask_rate) == (other.seq_len, other.mask_rate)

    def resumed(self, step: int, total_steps: int) -> HeldOut:
        """As a run continues that may have more steps in all than before. Then patience counts anew from here on."""
        if total_steps <= self.total_steps:
            return self
        return replace(self, total_steps=total_steps, patient_from=step)

    def has(self, step: int) -> bool:
        return any(each.step == step for each in self.evaluated)

    def with_loss(self, step: int, loss: float | None) -> HeldOut:
        """After one more evaluation. One of a step that it has already changes nothing."""
        if self.has(step):
            return self
        finite = loss if loss is not None and math.isfinite(loss) else None
        return replace(self, evaluated=(*self.evaluated, Evaluated(step, finite)))

    def best(self, steps: Container[int], until: int | None = None) -> Evaluated | None:
        """The evaluation with the lowest loss, the first of equals, or None.

        Args:
            steps: those that count: the ones that have a checkpoint.
            until: the last step that counts. Left out: all.
        """
        found = [
            each
            for each in self.evaluated
            if each.loss is not None and each.step in steps and (until is None or each.step <= until)
        ]
        return min(found, key=lambda each: (each.loss, each.step), default=None)

    def is_lower(self, step: int, steps: Container[int]) -> bool:
        """Whether the loss of `step` is lower than that of any other that counts. `steps` as in `best`."""
        loss = next((each.loss for each in self.evaluated if each.step == step), None)
        others = (each.loss for each in self.evaluated if each.step != step and each.step in steps)
        return loss is not None and all(other is None or loss < other for other in others)

    def waited(self, min_delta: float) -> tuple[Evaluated | None, int]:
        """The last evaluation that was lower by more than `min_delta`, and how many came after it."""
        reference: Evaluated | None = None
        count = 0
        for each in self.evaluated:
            lowest = math.inf if reference is None or reference.loss is None else reference.loss
            if each.loss is not None and each.loss < lowest - min_delta:
                reference, count = each, 0
            elif each.step > self.patient_from:
                count += 1
        return reference, count

    def is_exhausted(self, settings: Evaluation) -> bool:
        """Whether `patience` evaluations in a row brought no lower loss."""
        return settings.patience is not None and self.waited(settings.min_delta)[1] >= settings.patience

    def to_json(self) -> dict[str, Any]:
        """Nothing, if nothing was evaluated."""
        if not self.evaluated:
            return {}
        return {**asdict(self), "evaluated": [[each.step, each.loss] for each in self.evaluated]}

    @staticmethod
    def from_json(values: dict[str, Any]) -> HeldOut | None:
        """None of an empty object. Raises TypeError or ValueError for another shape."""
        if not values:
            return None
        held_out = HeldOut(**{**values, "evaluated": tuple(_read(values["evaluated"]))})
        counts = (held_out.seq_len, held_out.total_steps, held_out.patient_from)
        steps = [each.step for each in held_out.evaluated]
        if not all(map(is_count, (*counts, *steps))) or steps != sorted(set(steps)):
            raise ValueError("the steps are not in their order")
        numbers = [held_out.mask_rate, *(each.loss for each in held_out.evaluated if each.loss is not None)]
        if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
            raise ValueError("a loss is not a number")
        return held_out


def best_of(run: Path) -> Evaluated | None:
    """The lowest evaluation whose step has a checkpoint; None if there is none. The newest checkpoint knows of all of them."""
    steps = []
    for folder in (run / "checkpoints").glob("step-*"):
        number = folder.name.removeprefix("step-")
        if number.isdecimal() and folder.name == f"step-{int(number):08d}":
            steps.append(int(number))
    for step in sorted(steps, reverse=True):
        try:
            data = parse_json(read_plain(run / "checkpoints" / f"step-{step:08d}" / "data.json"))
            held_out = HeldOut.from_json(data.get("held_out", {}))
        except (UserError, OSError, ValueError, LookupError, TypeError, AttributeError):
            continue  # it is damaged: the one before knows of all evaluations but the last
        if held_out:
            return _with_logged(held_out, run, step).best(steps)
    return None


def _with_logged(held_out: HeldOut, run: Path, step: int) -> HeldOut:
    """With the evaluation of a checkpoint's own step. If it was made after the checkpoint, metrics.jsonl alone has it."""
    logged = (line.get("evaluation_loss") for line in read_lines(run / "metrics.jsonl") if line["step"] == step)
    loss = next((loss for loss in logged if type(loss) is float), None)
    return held_out if loss is None else held_out.with_loss(step, loss)


def _read(pairs: Iterable[Any]) -> Iterable[Evaluated]:
    for step, loss in pairs:
        yield Evaluated(step, loss)
