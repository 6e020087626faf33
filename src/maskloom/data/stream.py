"""Index and cursors to this rank's masked rows, a step at a time.

    lane cursors -> blocks (verified bytes) -> webdataset stages -> documents -> token ids -> packed rows -> masked rows
      V lanes       order.py, storage.py        samples.py          tokenizer      packing.py     masking.py

Reader process w of a rank reads every W-th of the rank's lanes and yields those lanes' rows of one step; the training
process merges them in lane order and takes the cursors that came with the step it consumes. Rows that were only read
ahead are therefore never counted as seen. The global batch of a step is the concatenation over ranks, and is the same
for every number of ranks and readers.

Shapes: R rows, S slots a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from maskloom.config import RunConfig
from maskloom.data.index import Index
from maskloom.data.masking import MaskRule, mask_rows
from maskloom.data.order import Cursor, UInt64s, block_order, default_lanes, hash64, make_key
from maskloom.data.packing import PackedRows, pack, pack_after
from maskloom.distributed import World
from maskloom.errors import UserError
from maskloom.processes import clean_forks
from maskloom.tokenizer import Tokenizer


@dataclass(frozen=True)
class Rows:
    """Masked rows.

    Attributes:
        tokens: int32 [R, S]; what stood there, padding at the end of a row.
        input_ids: int32 [R, S]; what the model sees.
        starts: bool [R, S]; True in the first slot of every piece and of the padding.
        chosen: bool [R, S]; which slots are predicted.
    """

    tokens: NDArray[np.int32]
    input_ids: NDArray[np.int32]
    starts: NDArray[np.bool_]
    chosen: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.tokens)

    @staticmethod
    def concatenate(parts: Sequence[Rows]) -> Rows:
        return Rows(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Rows)))

    def take(self, rows: slice) -> Rows:
        return Rows(*(getattr(self, field.name)[rows] for field in fields(Rows)))

    def update(self, digest: hashlib._Hash) -> None:
        """Feed every byte of these rows to a digest, in a layout that no platform changes."""
        for field in fields(Rows):
            array = getattr(self, field.name)
            digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())


@dataclass(frozen=True)
class Step:
    """What one rank reads for one optimizer step, and where its lanes stand afterwards."""

    number: int
    rows: Rows
    cursors: dict[int, Cursor]


@dataclass(frozen=True)
class DataPlan:
    """Everything that the data of a run follows from; picklable, sent to the reader processes.

    Attributes:
        phases: (steps, sequence length, rows a lane and step) each.
    """

    index: Index
    tokenizer: Tokenizer
    seed: int
    lanes: int
    phases: tuple[tuple[int, int, int], ...]
    rule: MaskRule

    @staticmethod
    def of(config: RunConfig, index: Index, tokenizer: Tokenizer) -> DataPlan:
        lanes = config.data.lanes or default_lanes(
            (phase.global_batch_rows for phase in config.phases), len(index.train_blocks)
        )
        phases = tuple((phase.steps, phase.seq_len, phase.global_batch_rows // lanes) for phase in config.phases)
        masking = config.masking
        return DataPlan(
            index,
            tokenizer,
            config.seed,
            lanes,
            phases,
            MaskRule(masking.rate, masking.mask_share, masking.random_share),
        )

    def phase_of(self, step: int) -> int:
        """Number of the phase that a step, which counts from 0, belongs to."""
        for number, (steps, _, _) in enumerate(self.phases):
            if step < steps:
                return number
            step -= steps
        raise IndexError(f"step {step} lies beyond the last phase")

    def at(self, step: int) -> tuple[int, int]:
        """(sequence length, rows a lane) of a step, which counts from 0."""
        _, seq_len, rows = self.phases[self.phase_of(step)]
        return seq_len, rows

    @property
    def total_steps(self) -> int:
        return sum(steps for steps, _, _ in self.phases)

    def check_world(self, world: World) -> None:
        """Raises UserError where there are more ranks than lanes."""
        if world.size > self.lanes:
            raise UserError(
                f"{world.size} ranks are more than the {self.lanes} lanes of this run, and a rank reads at least one: use "
                f"at most {self.lanes} ranks, or set data.lanes (to a divisor of every global_batch_rows) for a new run"
            )


class Lane:
    """One virtual reader: gives rows of its block sequence for ever, from a cursor on."""

    def __init__(self, plan: DataPlan, cursor: Cursor) -> None:
        self.plan, self.cursor = plan, cursor
        self.packed: PackedRows | None = None
        self.row_keys: UInt64s = np.empty(0, dtype=np.uint64)
        self.packed_at: tuple[int, tuple[int, ...]] | None = None

    def skip(self, count: int, seq_len: int) -> None:
        """Go `count` rows on without masking them."""
        for _ in self._runs(count, seq_len):
            pass

    def take(self, count: int, seq_len: int) -> Rows:
        """The next `count` rows of `seq_len` slots, masked."""
        parts = []
        for packed, keys, run in self._runs(count, seq_len):
            tokens = packed.tokens[run]
            input_ids, chosen = mask_rows(tokens, packed.starts[run], keys[run], self.plan.rule, self.plan.tokenizer)
            parts.append(Rows(tokens, input_ids, packed.starts[run], chosen))
        return Rows.concatenate(parts)

    def _runs(self, count: int, seq_len: int) -> Iterator[tuple[PackedRows, UInt64s, slice]]:
        """Runs of rows inside one block that together are the next `count` rows; moves the cursor past each."""
        empty: set[int] = set()
        while count:
            self.cursor = self.cursor.at(seq_len)
            packed, keys = self._open()
            if not len(packed.tokens) and len(self.cursor.reads) == 1:
                empty.add(self._place()[1])
                if len(empty) == len(self.plan.index.train_blocks):
                    raise UserError(
                        f"the corpus in {self.plan.index.folder} has no token for training: no text to learn"
                    )
            taken = self.cursor.reads[-1][1]
            run = slice(taken, min(taken + count, len(packed.tokens)))
            length = run.stop - run.start
            if length > 0:
                self.cursor = self.cursor.after(length)
                count -= length
                yield packed, keys, run
            if count:
                self.cursor = Cursor(self.cursor.number + self.plan.lanes)

    def _place(self) -> tuple[int, int]:
        """Epoch and number of the open block."""
        plan, blocks = self.plan, self.plan.index.train_blocks
        epoch, position = divmod(self.cursor.number, len(blocks))
        return epoch, int(blocks[block_order(plan.seed, plan.index.digest, epoch, len(blocks))[position]])

    def _open(self) -> tuple[PackedRows, UInt64s]:
        """The open block's rows at the cursor's sequence length, and a key for each."""
        lengths = tuple(seq_len for seq_len, _ in self.cursor.reads)
        if self.packed is not None and self.packed_at == (self.cursor.number, lengths):
            return self.packed, self.row_keys
        plan = self.plan
        epoch, block = self._place()
        documents = plan.tokenizer.encode(plan.index.documents(block, "train"))
        identity = (plan.seed, plan.index.digest, epoch, block)
        self.packed = pack_after(documents, self.cursor.reads, make_key(*identity, "pack"), plan.tokenizer)
        self.row_keys = _row_keys(make_key(*identity, "mask", len(lengths), lengths[-1]), len(self.packed.tokens))
        self.packed_at = (self.cursor.number, lengths)
        return self.packed, self.row_keys


class LaneReader(IterableDataset[Any]):
    """The rows of some lanes, a step at a time: what one reader process runs.

    Yields `Step`s, or a `UserError` in place of one: an exception that crosses the process border loses its shape.
    """

    def __init__(self, plan: DataPlan, cursors: dict[int, Cursor], first_step: int, last_step: int) -> None:
        self.plan, self.cursors = plan, cursors
        self.first_step, self.last_step = first_step, last_step

    def __iter__(self) -> Iterator[Step | UserError]:
        worker = get_worker_info()
        numbers = sorted(self.cursors)[worker.id :: worker.num_workers] if worker else sorted(self.cursors)
        lanes = {number: Lane(self.plan, self.cursors[number]) for number in numbers}
        try:
            for step in range(self.first_step, self.last_step):
                seq_len, count = self.plan.at(step)
                rows = Rows.concatenate([lane.take(count, seq_len) for lane in lanes.values()])
                yield Step(step, rows, {number: lane.cursor for number, lane in lanes.items()})
        except UserError as error:
            yield error


def read_steps(
    plan: DataPlan,
    world: World,
    cursors: Sequence[Cursor],
    first_step: int,
    last_step: int | None = None,
    workers: int = 0,
    prefetch_steps: int = 2,
) -> Iterator[Step]:
    """This rank's part of every step from `first_step` on.

    Args:
        cursors: where each of all lanes stands before `first_step`.
        last_step: the first step that is not read; None: to the end of the run.
        workers: reader processes; 0 reads in this process.
        prefetch_steps: steps that each of them prepares ahead.

    Raises:
        UserError: more ranks than lanes, or bad data (from whichever process met it).
    """
    plan.check_world(world)
    mine = world.share(plan.lanes)
    workers = min(workers, len(mine))
    reader = LaneReader(
        plan, {lane: cursors[lane] for lane in mine}, first_step, plan.total_steps if last_step is None else last_step
    )
    loader: DataLoader[Any] = DataLoader(
        reader,
        batch_size=None,
        num_workers=workers,
        collate_fn=_unchanged,
        prefetch_factor=prefetch_steps if workers else None,
        multiprocessing_context=clean_forks(__name__) if workers else None,
    )
    parts: list[Step] = []
    for item in loader:
        if isinstance(item, UserError):
            raise item
        parts.append(item)
        if len(parts) == max(workers, 1):
            yield _merge(parts)
            parts = []


def skip_steps(plan: DataPlan, cursors: Sequence[Cursor], first_step: int, last_step: int) -> list[Cursor]:
    """Where the lanes stand before `last_step`, if they stand at `cursors` before `first_step`."""
    lanes = [Lane(plan, cursor) for cursor in cursors]
    for step in range(first_step, last_step):
        seq_len, count = plan.at(step)
        for lane in lanes:
            lane.skip(count, seq_len)
    return [lane.cursor for lane in lanes]


def held_out_rows(index: Index, tokenizer: Tokenizer, seq_len: int, rule: MaskRule, world: World) -> Iterator[Rows]:
    """This rank's held-out rows, a block at a time: every held-out document once, with masks that never change.

    The masks depend on the corpus alone, not on the run's seed, so that runs can be compared.
    """
    for block in index.held_out_blocks[world.rank :: world.size]:
        documents = tokenizer.encode(index.documents(int(block), "validation"))
        identity = (index.digest, "validation", int(block))
        packed = pack(documents, seq_len, make_key(*identity, "pack"), tokenizer)
        keys = _row_keys(make_key(*identity, "mask", seq_len), len(packed.tokens))
        input_ids, chosen = mask_rows(packed.tokens, packed.starts, keys, rule, tokenizer)
        yield Rows(packed.tokens, input_ids, packed.starts, chosen)


def _row_keys(key: int, rows: int) -> UInt64s:
    return hash64(key, np.arange(rows, dtype=np.uint64))


def _unchanged(item: Any) -> Any:
    return item


def _merge(parts: Sequence[Step]) -> Step:
    """One step from its readers' parts, the rows in lane order."""
    assert len({part.number for part in parts}) == 1, "readers are out of step"
    cursors = {lane: cursor for part in parts for lane, cursor in part.cursors.items()}
    owners = [lane for part in parts for lane in part.cursors]  # each part's rows stand in this order
    rows = Rows.concatenate([part.rows for part in parts])
    each = len(rows) // len(owners)
    place = np.argsort(owners, kind="stable")
    order = (place[:, None] * each + np.arange(each)).reshape(-1)
    ordered = Rows(*(getattr(rows, field.name)[order] for field in fields(Rows)))
    return Step(parts[0].number, ordered, dict(sorted(cursors.items())))
