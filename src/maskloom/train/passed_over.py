"""Intervals of the data that a run went past: it went back to a checkpoint, and on behind the data of what came after it.

The rows of a run are a function of (corpus, seed, step) and of these: where one says so, the lanes jump before a step. They
are kept in `RUN/passed_over.json`, written before the run goes on, and in `data.json` of every later checkpoint, so that a
run that is resumed anywhere jumps at the same step to the same place, at any world size.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from maskloom.data.cursors import Cursor, LaneCursors
from maskloom.errors import UserError
from maskloom.files import parse_json, read_plain, sync_folder, write_atomically
from maskloom.redaction import brief
from maskloom.scalars import is_count


@dataclass(frozen=True)
class PassedOver:
    """One interval.

    Attributes:
        after_step: steps done where the lanes jump: those of the checkpoint that the run went back to.
        rows_of_steps: the first and the last step, counted from 1, whose rows at that time are passed over.
        rows: how many, over all ranks.
        bad_steps: steps not taken among them.
        reason: why the last of them was not.
        cursors: where each lane stands in each corpus afterwards.
    """

    after_step: int
    rows_of_steps: tuple[int, int]
    rows: int
    bad_steps: int
    reason: str
    cursors: list[list[list[Any]]]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "rows_of_steps": list(self.rows_of_steps)}

    @staticmethod
    def from_json(values: dict[str, Any]) -> PassedOver:
        """Raises TypeError, LookupError or ValueError for another shape."""
        first, last = values["rows_of_steps"]
        interval = PassedOver(**{**values, "rows_of_steps": (first, last)})
        for number in (interval.after_step, first, last, interval.rows, interval.bad_steps):
            if not is_count(number):
                raise ValueError(f"{number!r} is no count of steps or rows")
        if not isinstance(interval.reason, str):
            raise ValueError(f"{interval.reason!r} is no reason")
        interval.lane_cursors()
        return interval

    def lane_cursors(self) -> list[LaneCursors]:
        return [tuple(map(Cursor.from_json, lane)) for lane in self.cursors]


def jumps(intervals: Sequence[PassedOver], lanes: int, corpora: int) -> dict[int, list[LaneCursors]]:
    """Where the lanes stand before a step (which counts from 0), in place of behind the step before it.

    Raises:
        UserError: an interval does not say so of every lane and corpus of the run.
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
    """Those that a run has jumped over which stands after `step`."""
    return [interval for interval in intervals if interval.after_step < step]


def with_one_more(intervals: Sequence[PassedOver], interval: PassedOver) -> list[PassedOver]:
    """The intervals after the run went back once more: those that lie beyond were of steps that are done anew."""
    return [*(other for other in intervals if other.after_step <= interval.after_step), interval]


def read_intervals(run: Path) -> list[PassedOver]:
    """Those of the run's file, none where it has none. Raises UserError where the file is damaged."""
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
