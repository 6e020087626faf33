"""Which steps are refused, and which data is skipped for it.

**The guard** is a set of pure decisions on the losses of global batches. A step is refused if its loss or its gradients are not
finite, or if its loss is a spike. A spike lies more than `spike_sigma` standard deviations above the mean of the last
`window_steps` losses that were taken; Groeneveld et al. (2024) skip such steps in OLMo. A refused step leaves weights, moments
and counts of the optimizer as they were. Every rank decides the same, from the same sum over ranks. So does a resumed run, from a
few numbers of `data.json`.

**Skipped data.** After several refused steps in a row the run rolls back (`recovery.py`) and skips their data. The rows of
a run are a function of (corpus, seed, step) and of the skipped intervals: before some step the lanes jump. The intervals are
kept in `RUN/passed_over.json`, written before the run continues, and in `data.json` of every later checkpoint. So a run that is
resumed anywhere jumps at the same step to the same place, at any world size.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from maskloom.config import Guard
from maskloom.data.cursors import Cursor, LaneCursors
from maskloom.errors import UserError
from maskloom.files import parse_json, read_plain, sync_folder, write_atomically
from maskloom.redaction import brief
from maskloom.scalars import is_count

NOT_FINITE = "its gradients are not finite"


@dataclass(frozen=True)
class GuardState:
    """What the decision on the next step needs of the steps before it.

    Attributes:
        phase: of the losses.
        losses: of the newest steps of this phase that were taken, oldest first, at most `window_steps`.
        in_a_row: steps refused since the last one that was taken.
        bad_steps: steps refused so far.
    """

    phase: int = 0
    losses: tuple[float, ...] = ()
    in_a_row: int = 0
    bad_steps: int = 0

    def to_json(self) -> dict[str, object]:
        return {**vars(self), "losses": list(self.losses)}

    @staticmethod
    def from_json(values: dict[str, Any]) -> GuardState:
        """Raises TypeError or ValueError for another shape."""
        state = GuardState(**{**values, "losses": tuple(values.get("losses", ()))})
        counts = (state.phase, state.in_a_row, state.bad_steps)
        if not all(map(is_count, counts)) or not all(
            type(loss) in (int, float) and math.isfinite(loss) for loss in state.losses
        ):
            raise ValueError(f"{values!r} is not a state of the guard")
        return state


def highest_loss(state: GuardState, settings: Guard, phase: int) -> float:
    """The highest loss with which a step of `phase` is taken; the largest finite number until the window is full.

    Losses of other phases say nothing: another sequence length or mask rate has other losses.
    """
    losses = state.losses[-settings.window_steps :] if state.phase == phase else ()
    if settings.spike_sigma is None or len(losses) < settings.window_steps:
        return sys.float_info.max
    mean = math.fsum(losses) / len(losses)
    deviation = math.sqrt(math.fsum((loss - mean) ** 2 for loss in losses) / len(losses))
    return mean + settings.spike_sigma * deviation


def why_refused(loss: float, highest: float) -> str | None:
    """Why a step with this loss is refused, or None."""
    if loss <= highest:
        return None
    if not math.isfinite(loss):
        return f"its loss is {loss}"
    return f"its loss {loss:.4f} is a spike, above {highest:.4f}"


def after_step(state: GuardState, settings: Guard, phase: int, loss: float, is_taken: bool) -> GuardState:
    """The state after a step."""
    if not is_taken:
        return replace(state, in_a_row=state.in_a_row + 1, bad_steps=state.bad_steps + 1)
    losses = state.losses if state.phase == phase else ()
    return GuardState(phase, (*losses, loss)[-settings.window_steps :], 0, state.bad_steps)


def must_roll_back(state: GuardState, settings: Guard) -> bool:
    """Whether so many steps in a row were refused that the run has to roll back."""
    return state.in_a_row >= settings.skips_before_rollback


@dataclass(frozen=True)
class PassedOver:
    """One interval of the data that a run skipped.

    Attributes:
        after_step: steps done when the lanes jump: those of the checkpoint that the run rolled back to.
        rows_of_steps: the first and the last step, counted from 1, whose rows are skipped.
        rows: how many, over all ranks.
        bad_steps: refused steps among them.
        reason: why the last of them was refused.
        cursors: where each lane stands in each corpus afterwards.
    """

    after_step: int
    rows_of_steps: tuple[int, int]
    rows: int
    bad_steps: int
    reason: str
    cursors: list[list[list[Any]]]

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "rows_of_steps": list(self.rows_of_steps)}

    @staticmethod
    def from_json(values: dict[str, Any]) -> PassedOver:
        """Raises TypeError, LookupError or ValueError for another shape."""
        first, last = values["rows_of_steps"]
        interval = PassedOver(**{**values, "rows_of_steps": (first, last)})
        for number in (interval.after_step, first, last, interval.rows, interval.bad_steps):
            if not is_count(number):
                raise ValueError(f"{number!r} is not a count of steps or rows")
        if not isinstance(interval.reason, str):
            raise ValueError(f"{interval.reason!r} is not a reason")
        interval.lane_cursors()
        return interval

    def lane_cursors(self) -> list[LaneCursors]:
        return [tuple(map(Cursor.from_json, lane)) for lane in self.cursors]


def jumps(intervals: Sequence[PassedOver], lanes: int, corpora: int) -> dict[int, list[LaneCursors]]:
    """Lane cursors to jump to before a step (0-based).

    Raises:
        UserError: an interval does not have a cursor for every lane and corpus of the run.
    """
    for interval in intervals:
        if [len(lane) for lane in interval.cursors] != [corpora] * lanes:
            raise UserError(
                f"the interval after step {interval.after_step} in passed_over.json does not say where each of {lanes} lanes "
                f"stands in each of {corpora} corpora: restore the file, or remove it; the newest checkpoint knows of all "
                "before it"
            )
    return {interval.after_step: interval.lane_cursors() for interval in intervals}


def known(of_checkpoint: Sequence[PassedOver], step: int, of_run: Sequence[PassedOver]) -> list[PassedOver]:
    """All intervals, in their order: a checkpoint of `step` steps has those before it, the run's file also later ones."""
    later = [interval for interval in of_run if interval.after_step >= step and interval not in of_checkpoint]
    return [*of_checkpoint, *later]


def behind(intervals: Sequence[PassedOver], step: int) -> list[PassedOver]:
    """Those that a run which stands after `step` has skipped already."""
    return [interval for interval in intervals if interval.after_step < step]


def with_one_more(intervals: Sequence[PassedOver], interval: PassedOver) -> list[PassedOver]:
    """The intervals after one more roll-back. Those beyond it are dropped: their steps are done again."""
    return [*(other for other in intervals if other.after_step <= interval.after_step), interval]


def read_intervals(run: Path) -> list[PassedOver]:
    """The intervals in the run's file; none if there is no file. Raises UserError if it is damaged."""
    file = run / "passed_over.json"
    try:
        content = read_plain(file)
    except FileNotFoundError:
        return []
    try:
        return [PassedOver.from_json(values) for values in parse_json(content)]
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{file} is damaged ({brief(error)}): restore it, or remove it; the newest checkpoint knows of all before it"
        ) from None


def write_intervals(run: Path, intervals: Sequence[PassedOver]) -> None:
    """Replace the run's file; on the disk when this returns."""
    write_atomically(run / "passed_over.json", json.dumps([interval.to_json() for interval in intervals], indent=1))
    sync_folder(run)
