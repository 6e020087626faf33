"""The way back: past steps in a row that were not taken, to the newest checkpoint before them, and on behind their data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from maskloom.data.cursors import LaneCursors
from maskloom.data.plan import DataPlan
from maskloom.distributed import World, barrier
from maskloom.progress import warn
from maskloom.train import checkpoint
from maskloom.train.passed_over import PassedOver, write_intervals


@dataclass(frozen=True)
class Rollback:
    """From where a run stands to a checkpoint.

    Attributes:
        step: that the run stands at.
        in_a_row: the last so many steps were not taken.
        reason: why the last of them was not.
        to_step: steps done at the checkpoint; 0 is the beginning of the run.
    """

    step: int
    in_a_row: int
    reason: str
    to_step: int

    def times(self, intervals: Sequence[PassedOver]) -> int:
        """How often the run went back to this checkpoint before."""
        return sum(interval.after_step == self.to_step for interval in intervals)

    def refusal(self, times: int, place: str) -> str:
        """Why the run does not go back once more; `place` is what is not finite, where that was found."""
        found = f" ({place} is not finite)" if place else ""
        return (
            f"step {self.step} was not taken, as {self.reason}{found}, nor were the {self.in_a_row - 1} before it, and the "
            f"run went back to step {self.to_step} {times} time(s) already (guard.rollbacks)"
        )

    def interval(
        self,
        plan: DataPlan,
        cursors: Sequence[LaneCursors],
        intervals: Sequence[PassedOver],
        bad_steps: int,
        saved_bad_steps: int,
    ) -> PassedOver:
        """What is passed over.

        Args:
            cursors: of all lanes, where the run stands.
            intervals: that were passed over before.
            bad_steps: steps not taken so far, those in intervals included.
            saved_bad_steps: those that the checkpoint counts, without intervals.
        """
        before = (
            sum(interval.bad_steps for interval in intervals if interval.after_step <= self.to_step) + saved_bad_steps
        )
        return PassedOver(
            self.to_step,
            (self.to_step + 1, self.step),
            sum(plan.lanes * plan.lane_rows(number) for number in range(self.to_step, self.step)),
            bad_steps - before,
            f"step {self.step}: {self.reason}",
            [[cursor.to_json() for cursor in lane] for lane in cursors],
        )

    def carry_out(self, run: Path, intervals: Sequence[PassedOver], world: World) -> None:
        """Leave in the run's folder what a run that goes back leaves there: `intervals`, the last of which is this one's, and
        no later checkpoint. Every rank takes part."""
        # In this order: a run that is killed between the two meets the same steps again, and goes back again.
        checkpoint.drop_after(run, self.to_step, world)
        if world.is_first:
            write_intervals(run, intervals)
            warn(
                f"step {self.step:,}: {self.in_a_row} steps in a row were not taken: going back to step {self.to_step:,}, and on "
                f"behind the rows of steps {self.to_step + 1:,} to {self.step:,} ({intervals[-1].rows:,} rows are passed over)"
            )
        barrier()
