"""When a run goes wrong: roll back to the last good checkpoint, and say what is not finite.

steps refused in a row -> the newest checkpoint before them -> its weights, and the data after the refused steps
rolled back to it too often, weights that are not finite, fp16 that collapsed -> an error that says what to do
"""

from __future__ import annotations

import functools
import gc
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from maskloom.data.batch import MicroBatch
from maskloom.data.cursors import LaneCursors
from maskloom.data.plan import DataPlan
from maskloom.distributed import World, barrier, gather_objects, sum_over_ranks
from maskloom.errors import UserError
from maskloom.models.overflow import find_overflow
from maskloom.progress import warn
from maskloom.train import checkpoint
from maskloom.train.batches import ReadyStep
from maskloom.train.engine.engine import Engine
from maskloom.train.refusal import PassedOver, with_one_more, write_intervals
from maskloom.train.setup import restore
from maskloom.train.trainer import Trainer


def roll_back(trainer: Trainer, batch: ReadyStep, counts: torch.Tensor, reason: str) -> None:
    """Load the newest checkpoint from before the refused steps, and skip their data. Every rank calls it.

    Args:
        batch: of the newest refused step, to look in it for what is not finite.
        counts: of the global batch, as the step's result has them.
        reason: why that step was refused.

    Raises:
        UserError: the run was rolled back to this checkpoint as often as it may.
    """
    config, world = trainer.config, trainer.world
    trainer.saver.finish()
    found = checkpoint.find_at_most(trainer.run, trainer.step - trainer.guard.in_a_row, world)
    if found is None and config.from_ is not None:
        found = checkpoint.find_origin(str(config.from_), world)
    saved_bad_steps = found[1].guard_state().bad_steps if found else 0
    way = Rollback(trainer.step, trainer.guard.in_a_row, reason, found[1].step if found else 0)
    if (times := way.times(trainer.passed_over)) >= config.guard.rollbacks:
        micro_batches = [micro_batch.to(trainer.device) for micro_batch in batch.micro_batches]
        seed_dropout = functools.partial(trainer.seed_dropout, batch.number)
        scale = world.size / counts[0].clamp(min=1)
        place = first_not_finite(trainer.engine, micro_batches, seed_dropout, scale, world)
        raise diverged(way.refusal(times, place), config.optimizer.lr, config.engine.precision)
    trainer.gather_cursors()
    interval = way.interval(trainer.plan, trainer.cursors, trainer.passed_over, trainer.bad_steps, saved_bad_steps)
    trainer.passed_over = with_one_more(trainer.passed_over, interval)
    way.carry_out(trainer.run, trainer.passed_over, world)
    # Before the next engine is built: two of them may not fit into memory.
    trainer.engine.close()
    del trainer.engine
    gc.collect()
    torch.cuda.empty_cache()
    restore(trainer, found)


@dataclass(frozen=True)
class Rollback:
    """From where a run stands to a checkpoint.

    Attributes:
        step: that the run stands at.
        in_a_row: the last so many steps were refused.
        reason: why the last of them was.
        to_step: steps done at the checkpoint; 0 is the beginning of the run.
    """

    step: int
    in_a_row: int
    reason: str
    to_step: int

    def times(self, intervals: Sequence[PassedOver]) -> int:
        """How often the run was rolled back to this checkpoint before."""
        return sum(interval.after_step == self.to_step for interval in intervals)

    def refusal(self, times: int, place: str) -> str:
        """Why the run is not rolled back once more; `place` is what is not finite, if that was found."""
        found = f" ({place} is not finite)" if place else ""
        return (
            f"step {self.step} was not taken, as {self.reason}{found}, nor were the {self.in_a_row - 1} before it, and the "
            f"run was rolled back to step {self.to_step} {times} time(s) already (guard.rollbacks)"
        )

    def interval(
        self,
        plan: DataPlan,
        cursors: Sequence[LaneCursors],
        intervals: Sequence[PassedOver],
        bad_steps: int,
        saved_bad_steps: int,
    ) -> PassedOver:
        """The data to skip.

        Args:
            cursors: of all lanes, where the run stands.
            intervals: that were skipped before.
            bad_steps: steps refused so far, those in intervals included.
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
        """Leave in the run's folder what a roll-back leaves there: `intervals`, the last of which is this one's, and no later
        checkpoint. Every rank calls it."""
        # In this order: a run that is killed between the two meets the same steps again, and rolls back again.
        checkpoint.drop_after(run, self.to_step, world)
        if world.is_first:
            write_intervals(run, intervals)
            warn(
                f"step {self.step:,}: {self.in_a_row} steps in a row were not taken: rolling back to step {self.to_step:,}, and "
                f"skipping the rows of steps {self.to_step + 1:,} to {self.step:,} ({intervals[-1].rows:,} rows)"
            )
        barrier()


def count_not_finite(engine: Engine, device: torch.device) -> int:
    """Weights of all ranks that are NaN or infinite; every rank calls it."""
    wrong = torch.zeros((), dtype=torch.int64, device=device)
    for _, part in engine.parts():
        wrong += (~torch.isfinite(part)).sum()
    return int(sum_over_ranks(wrong))


def first_not_finite(
    engine: Engine,
    micro_batches: Sequence[MicroBatch],
    seed_dropout: Callable[[int], None],
    scale: torch.Tensor | float,
    world: World,
) -> str:
    """Which layer of which ranks is the first whose output or gradient is not finite, the same on every rank; empty if none is.

    Args:
        micro_batches: of this rank's step, on its device.
        seed_dropout: called with the number of each, before it is computed again.
        scale: of the loss, without the loss scale of fp16; on a GPU it is read here, and not in a step.
    """
    found: str | None = None
    for number, micro_batch in enumerate(micro_batches):
        seed_dropout(number)
        scaled = float(scale) * (engine.loss_scale or 1.0)
        found = found or find_overflow(engine.model, micro_batch, scaled, engine.whole_parameters())
    places = gather_objects(found, world)
    return "; ".join(f"rank {rank}: {place}" for rank, place in enumerate(places) if place)


def diverged(what: str, lr: float, precision: str) -> UserError:
    """The error that ends a run which diverged.

    Args:
        lr: `optimizer.lr` of the run.
        precision: `engine.precision` of the run.
    """
    fp16 = ", or engine.precision=bf16" if precision == "fp16" else ""
    return UserError(
        f"the run diverged: {what}. Start again in another run_dir with a lower optimizer.lr (now {lr}) "
        f"or a longer optimizer.warmup_steps{fp16}"
    )


def collapsed(step: int, where: str, lr: float, run: str, last_good: str | None) -> UserError:
    """The error that ends a run in fp16 at `step`, which counts from 1.

    Args:
        where: what `first_not_finite` found.
        lr: `optimizer.lr` of the run.
        run: its folder.
        last_good: name of its newest checkpoint.
    """
    origin = f"from={run}@{int(last_good.removeprefix('step-'))}" if last_good else ""
    origin = f"{shlex.quote(origin)} and " if origin else ""
    return UserError(
        f"fp16 collapsed at step {step}: gradients overflow although the loss scale is at its minimum. Not finite: "
        f"{where or 'the sum of the gradients'}. Begin in another run_dir, with {origin}engine.precision=bf16 or a lower "
        f"optimizer.lr (now {lr})"
    )
