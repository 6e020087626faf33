"""What `maskloom compare` compares: the figures of each run, and evaluations of the same steps.

All of it is read from the folders of the runs, which may still be at work. A figure that a run does not have is None.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from maskloom.runs import Evaluation, evaluations, number, read_metrics, seconds_of, training_losses
from maskloom.status import read_status


@dataclass(frozen=True)
class Figures:
    """What a run has done so far.

    Attributes:
        state: of status.json.
        step: last one that was logged, or that status.json names.
        tokens_seen: text tokens up to the last logged step.
        last, best: evaluations; the best has the lowest held-out loss.
        training_losses: logged step -> mean loss since the line before, in nats a token.
        tokens_per_s: median of the logged lines.
        bad_steps, rollbacks: so far.
        training_s: seconds of steps, without evaluations and checkpoints.
    """

    run: str
    state: str | None
    step: int
    total_steps: int | None
    attempts: int | None
    tokens_seen: int | None
    last: Evaluation | None
    best: Evaluation | None
    evaluations: tuple[Evaluation, ...]
    training_losses: Mapping[int, float]
    tokens_per_s: float | None
    bad_steps: int | None
    rollbacks: int | None
    training_s: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        plain = dict(vars(self))
        for name in ("last", "best"):
            one: Evaluation | None = plain.pop(name)
            plain[f"{name}_evaluation"] = one._asdict() if one else None
        plain["evaluations"] = [one._asdict() for one in self.evaluations]
        plain["training_losses"] = [
            {"step": step, "loss": self.training_losses[step]} for step in sorted(self.training_losses)
        ]
        return plain


class Same(NamedTuple):
    """Losses of one step in all runs, in nats a token."""

    step: int
    losses: tuple[float, ...]

    @property
    def differences(self) -> tuple[float, ...]:
        """Of each run from the first: below zero is better than it."""
        return tuple(loss - self.losses[0] for loss in self.losses)

    def to_json(self) -> dict[str, Any]:
        return {"step": self.step, "losses": self.losses, "differences": self.differences}


def figures_of(run: Path) -> Figures:
    """The figures of a run. Raises UserError if its status.json is damaged."""
    lines, status = read_metrics(run), read_status(run)
    found = evaluations(lines)
    took_s = seconds_of(lines)
    return Figures(
        run=str(run),
        state=status.state if status else None,
        step=max([status.step if status else 0, *(line["step"] for line in lines)]),
        total_steps=status.total_steps if status else None,
        attempts=status.attempt if status else None,
        tokens_seen=_last_count(lines, "tokens_seen"),
        last=found[-1] if found else None,
        best=min(found, key=lambda one: (one.loss, one.step), default=None),
        evaluations=tuple(found),
        training_losses=training_losses(lines),
        tokens_per_s=_median(lines, "tokens_per_s"),
        bad_steps=_last_count(lines, "bad_steps"),
        rollbacks=_last_count(lines, "rollbacks"),
        training_s=sum(took_s) if any(took_s) else None,
    )


def evaluated_together(runs: Sequence[Figures]) -> list[Same]:
    """The steps at which all runs were evaluated."""
    return _together([{one.step: one.loss for one in run.evaluations} for run in runs])


def logged_together(runs: Sequence[Figures]) -> list[Same]:
    """The steps at which all runs logged their training loss."""
    return _together([run.training_losses for run in runs])


def _together(losses: Sequence[Mapping[int, float]]) -> list[Same]:
    steps = set.intersection(*(set(each) for each in losses))
    return [Same(step, tuple(each[step] for each in losses)) for step in sorted(steps)]


def _last_count(lines: Sequence[Mapping[str, Any]], name: str) -> int | None:
    values = [value for line in lines if (value := number(line, name)) is not None]
    return int(values[-1]) if values else None


def _median(lines: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [value for line in lines if (value := number(line, name)) is not None]
    return statistics.median(values) if values else None
