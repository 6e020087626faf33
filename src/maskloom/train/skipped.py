"""Blocks of bad data that were skipped (`on_bad_data: skip`): counted over all ranks, listed, and bounded.

`RUN/skipped.jsonl` has one line for each block: the step, corpus, epoch and number of the occurrence, shard, offset and fault. A
resumed run drops the lines of steps that it does again. (What a roll-back skips is in `refusal.py`.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from maskloom.data.cursors import LaneCursors
from maskloom.data.lane import Skip
from maskloom.data.plan import DataPlan
from maskloom.distributed import World, gather_objects
from maskloom.errors import UserError
from maskloom.files import open_plain
from maskloom.progress import warn
from maskloom.train.metrics import keep_until


class Skipped:
    """The count so far, the same on every rank after `settle`."""

    def __init__(self, run: Path, plan: DataPlan, step: int, count: int, max_share: float, world: World) -> None:
        self.path, self.plan, self.count, self.max_share, self.world = (
            run / "skipped.jsonl",
            plan,
            count,
            max_share,
            world,
        )
        self._pending: list[dict[str, Any]] = []
        if world.is_first:
            keep_until(self.path, step)

    def add(self, step: int, skips: Sequence[Skip]) -> None:
        """Note what this rank skipped in a step."""
        self._pending += [{"step": step, **asdict(skip)} for skip in skips]

    def settle(self, mine: Mapping[int, LaneCursors]) -> None:
        """List what all ranks skipped since the last call; every rank calls it.

        Args:
            mine: cursors of this rank's lanes.

        Raises:
            UserError: more than `data.max_bad_share` of the blocks read were bad.
        """
        if not self.plan.skips_bad:
            return
        read = sum(cursor.number // self.plan.lanes + 1 for cursors in mine.values() for cursor in cursors)
        parts = gather_objects([self._pending, read], self.world)
        self._pending = []
        lines = [line for pending, _ in parts for line in pending]
        self.count += len(lines)
        if lines and self.world.is_first:
            for line in lines:
                warn(f"step {line['step']}: skipped: {line['message']}")
            with open(self.path, "a", encoding="utf-8", opener=open_plain) as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))
        blocks = sum(read for _, read in parts)
        if self.count > max(1, self.max_share * blocks):
            raise UserError(
                f"{self.count} of {blocks:,} blocks were bad and skipped, more than data.max_bad_share {self.max_share} of "
                f"them: see {self.path}; check the corpus with `maskloom index --check`, repair it, and start again, or "
                "raise the share"
            )
