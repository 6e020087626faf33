"""Steps to micro-batches. For a GPU a thread makes them ready, one step ahead: the training thread only copies.

    readers' parts of a step -> rows in lane order -> micro-batches, counts -> pinned memory | train_step: copies to the device
    \\____________________ for a GPU in a thread, one step ahead ______________________/

A step that was made ready and is not taken leaves no trace: the state of the data is the cursors of the steps that were taken.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch

from maskloom.data.ahead import ahead
from maskloom.data.batch import Layout, MicroBatch, micro_batches
from maskloom.data.cursors import LaneCursors
from maskloom.data.plan import DataPlan
from maskloom.data.stream import Step, merge, read_parts
from maskloom.distributed import World
from maskloom.train.tally import counts_of


@dataclass(frozen=True, kw_only=True)
class ReadyStep(Step):
    """A step of one rank.

    Attributes:
        micro_batches: for its device, still in this process' memory.
        counts: `counts_of` its rows.
    """

    micro_batches: tuple[MicroBatch, ...]
    counts: torch.Tensor


def ready_steps(
    plan: DataPlan,
    world: World,
    layouts: Sequence[Layout],
    device: torch.device,
    cursors: Sequence[LaneCursors],
    first_step: int,
    workers: int,
    prefetch_steps: int,
    windows: Sequence[int | None] = (None,),
) -> Generator[ReadyStep]:
    """This rank's part of every step from `first_step` on.

    Readers and thread end with the iterator. If it is not used up, close it (`contextlib.closing`).

    Args:
        layouts: of each phase, once its batch has grown.
        device: of this rank.
        windows: of the model's attention, whose pairs of slots are counted.
        cursors, first_step, workers, prefetch_steps: see `read_steps`, and what it raises.
    """

    capacities = [plan.capacity(phase) for phase in range(len(plan.phases))]

    def read(is_over: Callable[[], bool]) -> Generator[list[Step]]:
        return read_parts(
            plan, world, cursors, first_step, workers=workers, prefetch_steps=prefetch_steps, is_over=is_over
        )

    def ready(parts: list[Step]) -> ReadyStep:
        step = merge(parts)
        phase = plan.phase_of(step.number)
        layout = layouts[phase].of_smaller(plan.lanes, plan.lane_rows(step.number), world)
        batches = micro_batches(step.rows, layout, capacities[phase], plan.tokenizer)
        pinned = tuple(batch.pinned_for(device) for batch in batches)
        return ReadyStep(**vars(step), micro_batches=pinned, counts=counts_of(step.rows, plan.tokenizer, windows))

    return ahead(read, ready, device)
