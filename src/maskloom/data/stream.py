"""From cursors to this rank's masked rows, a step at a time.

    lane cursors -> blocks (verified bytes) -> webdataset stages -> documents -> token ids -> packed rows -> masked rows
      V lanes       order.py, storage.py        samples.py          tokenizer      packing.py     masking.py

Reader process w of a rank reads every W-th of the rank's lanes and yields those lanes' rows, a step at a time. The training
process merges them in lane order; for a GPU, a thread does (`train/batches.py`). The cursors travel with the rows of their
step. So rows that were only read ahead never count as seen. The global batch of a step is the concatenation over ranks. It is
the same for every number of ranks and readers.

Shapes: R rows, S slots a row.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from maskloom.data.cursors import LaneCursors
from maskloom.data.hashing import make_key
from maskloom.data.index.corpus import Index
from maskloom.data.lane import Lane, Skip, row_keys, rows_of_step
from maskloom.data.masking import MaskRule, mask_rows
from maskloom.data.packing import pack
from maskloom.data.plan import DataPlan
from maskloom.data.reading.storage import is_remote
from maskloom.data.rows import Rows
from maskloom.errors import DataFault, UserError
from maskloom.hardware import cores
from maskloom.processes import WANT_OF_MEMORY, Deaf, clean_forks, end_with_owner
from maskloom.progress import warn
from maskloom.tokenizers.base import Tokenizer
from maskloom.world import World

FETCHES_AT_ONCE = 16  # block requests that a reader process has open at a store
POLL_S = 0.25  # how often a wait for reader processes looks whether it is over


@dataclass(frozen=True)
class Step:
    """What one rank reads for one optimizer step: rows, cursors of its lanes afterwards, and skipped blocks."""

    number: int
    rows: Rows
    cursors: dict[int, LaneCursors]
    skips: tuple[Skip, ...] = ()


class LaneReader(IterableDataset[Any]):
    """The rows of some lanes, a step at a time: what one reader process runs.

    Yields `Step`s. Instead of raising a `UserError` it yields one: torch would rebuild an exception that crosses processes.
    """

    def __init__(
        self, plan: DataPlan, cursors: dict[int, LaneCursors], first_step: int, last_step: int, encoder_threads: int
    ) -> None:
        self.plan, self.cursors = plan, cursors
        self.first_step, self.last_step, self.encoder_threads = first_step, last_step, encoder_threads

    def __iter__(self) -> Iterator[Step | UserError]:
        worker = get_worker_info()
        if worker:  # a share each, or the encoders of all readers of a node would take its cores many times over
            os.environ.setdefault("RAYON_NUM_THREADS", str(self.encoder_threads))
        numbers = sorted(self.cursors)[worker.id :: worker.num_workers] if worker else sorted(self.cursors)
        with contextlib.ExitStack() as stack:
            executor = None
            if any(is_remote(index.url(index.shards[0])) for index in self.plan.corpora):
                executor = ThreadPoolExecutor(FETCHES_AT_ONCE)
                stack.callback(executor.shutdown, wait=False, cancel_futures=True)
            lanes = self._open({number: self.cursors[number] for number in numbers}, executor)
            try:
                for step in range(self.first_step, self.last_step):
                    if jump := self.plan.jumps.get(step):
                        lanes = self._open({number: jump[number] for number in numbers}, executor)
                    rows = rows_of_step(lanes, step)
                    skips = tuple(skip for lane in lanes for skip in lane.skipped()) if self.plan.skips_bad else ()
                    yield Step(step, rows, {lane.number: lane.cursors for lane in lanes}, skips)
            except DataFault as fault:
                yield DataFault(
                    f"{fault} (kind of fault: {fault.kind}; set data.on_bad_data: skip to leave such data out)",
                    kind=fault.kind,
                    shard=fault.shard,
                    offset=fault.offset,
                    key=fault.key,
                )
            except UserError as error:
                yield error

    def _open(self, cursors: dict[int, LaneCursors], executor: ThreadPoolExecutor | None) -> list[Lane]:
        lanes = [Lane(self.plan, number, lane_cursors, executor) for number, lane_cursors in cursors.items()]
        for lane in lanes:
            for track in lane.tracks:
                track.prefetch()
        return lanes


def read_steps(
    plan: DataPlan,
    world: World,
    cursors: Sequence[LaneCursors],
    first_step: int,
    last_step: int | None = None,
    workers: int = 0,
    prefetch_steps: int = 2,
) -> Generator[Step]:
    """This rank's part of every step from `first_step` on. The reader processes end with the iterator: if you do not use it up,
    close it (`contextlib.closing`).

    Args:
        cursors: of all lanes, before `first_step`.
        last_step: the first step that is not read; None: to the end of the run.
        workers: reader processes; 0 reads in this process.
        prefetch_steps: steps that each of them prepares ahead.

    Raises:
        UserError: more ranks than lanes, or bad data (from whichever process met it).
        ChildProcessError: a reader process was killed.
    """
    with contextlib.closing(read_parts(plan, world, cursors, first_step, last_step, workers, prefetch_steps)) as steps:
        for parts in steps:
            yield merge(parts)


def read_parts(
    plan: DataPlan,
    world: World,
    cursors: Sequence[LaneCursors],
    first_step: int,
    last_step: int | None = None,
    workers: int = 0,
    prefetch_steps: int = 2,
    is_over: Callable[[], bool] = lambda: False,
) -> Generator[list[Step]]:
    """As `read_steps`, but each step as a list of what its readers gave: `merge` joins it. A wait for readers ends soon after
    `is_over` says so, and then another thread can close the iterator."""
    plan.check_world(world)
    mine = world.share(plan.lanes)
    # Each reader reads at least one lane.
    workers = min(workers, len(mine))
    last_step = plan.total_steps if last_step is None else last_step
    # The encoders of all readers on this node share its cores.
    threads = max(1, cores() // (world.local_size * max(workers, 1)))
    reader = LaneReader(plan, {lane: cursors[lane] for lane in mine}, first_step, last_step, threads)
    loader: DataLoader[Any] = DataLoader(
        reader,
        batch_size=None,
        num_workers=workers,
        collate_fn=_unchanged,
        prefetch_factor=prefetch_steps if workers else None,
        timeout=POLL_S if workers else 0,
        multiprocessing_context=clean_forks(__name__, "webdataset") if workers else None,
        worker_init_fn=end_with_owner if workers else None,
        generator=torch.Generator(),  # the loader draws a number when it begins: not from the generator of the caller's dropout
    )
    # The loader asks its workers in turn, so the next W items are the parts of one step.
    parts: list[Step] = []
    with contextlib.closing(_items(loader, is_over)) as items:
        for item in items:
            if isinstance(item, UserError):
                raise item
            parts.append(item)
            if len(parts) == max(workers, 1):
                yield parts
                parts = []


def _items(loader: DataLoader[object], is_over: Callable[[], bool]) -> Generator[Step | UserError]:
    """What the reader yields. Its processes end with the iterator, in whatever way that ends."""
    if not loader.num_workers:
        yield from loader
        return
    readers = Deaf()
    with readers:
        items: Any = iter(loader)
    try:
        while not is_over():
            try:
                item = next(items)
            except StopIteration:
                return
            except RuntimeError as error:
                if "timed out" in str(error):  # what torch says after POLL_S; no item is lost
                    continue
                if "exited unexpectedly" not in str(error):  # what torch says of a process that died
                    raise
                raise ChildProcessError(
                    f"of the readers, {WANT_OF_MEMORY}: lower data.workers or data.prefetch_steps"
                ) from None
            yield item
    finally:
        readers.end(items._shutdown_workers)  # torch alone would wait 10 s for each reader that is inside a step


def skip_steps(plan: DataPlan, cursors: Sequence[LaneCursors], first_step: int, last_step: int) -> list[LaneCursors]:
    """The cursors before `last_step`, from those before `first_step`. Reads the blocks in between, without masking."""
    lanes = [Lane(plan, number, lane_cursors) for number, lane_cursors in enumerate(cursors)]
    for step in range(first_step, last_step):
        if jump := plan.jumps.get(step):
            lanes = [Lane(plan, number, lane_cursors) for number, lane_cursors in enumerate(jump)]
        step_plan = plan.step_at(step)
        for lane in lanes:
            lane.skip(step_plan)
    return [lane.cursors for lane in lanes]


def held_out_rows(
    index: Index, tokenizer: Tokenizer, seq_len: int, rule: MaskRule, world: World, skips_bad: bool = False
) -> Iterator[Rows]:
    """This rank's held-out rows, a block at a time: every held-out document once, with masks that never change.

    The masks depend on the corpus alone, not on the run's seed, so runs can be compared. With `skips_bad`, a block that is not
    what was indexed is left out with a warning.
    """
    for block in index.held_out_blocks[world.rank :: world.size]:
        try:
            documents = index.tokenized(int(block), "validation", tokenizer)
        except DataFault as fault:
            if not skips_bad:
                raise
            warn(f"left out of the evaluation: {fault}")
            continue
        identity = (index.digest, "validation", int(block))
        packed = pack(documents, seq_len, make_key(*identity, "pack"), tokenizer)
        keys = row_keys(make_key(*identity, "mask", seq_len), packed.count)
        input_ids, chosen = mask_rows(packed.tokens, packed.starts, keys, rule, tokenizer)
        yield Rows(packed.tokens, input_ids, packed.starts, chosen)


def _unchanged(item: Any) -> Any:
    return item


def merge(parts: Sequence[Step]) -> Step:
    """One step from its readers' parts, the rows in lane order."""
    if len(parts) == 1:
        return parts[0]
    assert len({part.number for part in parts}) == 1, "readers are out of step"
    cursors = {lane: lane_cursors for part in parts for lane, lane_cursors in part.cursors.items()}
    owners = [lane for part in parts for lane in part.cursors]  # the order of the rows in the joined parts
    rows = Rows.concatenate([part.rows for part in parts])
    each = len(rows) // len(owners)
    place = np.argsort(owners, kind="stable")
    order = (place[:, None] * each + np.arange(each)).reshape(-1)
    skips = tuple(skip for part in parts for skip in part.skips)
    return Step(parts[0].number, rows.take(order), dict(sorted(cursors.items())), skips)
