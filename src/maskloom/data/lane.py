"""A lane: a virtual reader that gives rows without end, from a cursor on.

    corpus -> Track (blocks of one corpus: bytes -> documents -> token ids -> packed and masked rows) -> Lane (mixes tracks)

A track opens one block at a time and meanwhile fetches the bytes of its next one, to wait for a slow store only once. With
`on_bad_data: skip`, a block that is not what was indexed is skipped in that one occurrence: the cursor moves to the lane's next
block. So every lane still gives the rows of every step, and no rank falls out of step.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maskloom.data.cursors import Cursor, LaneCursors
from maskloom.data.hashing import UInt64s, hash64, make_key
from maskloom.data.masking import MaskRule, mask_rows
from maskloom.data.mixing import corpus_of_rows
from maskloom.data.order import block_at
from maskloom.data.packing import PackedRows, pack_after
from maskloom.data.plan import DataPlan, StepPlan
from maskloom.data.rows import RowRange, Rows
from maskloom.errors import DataFault, UserError
from maskloom.tokenizers.base import Tokenized

MOST_EMPTY_BLOCKS = 4096  # after so many blocks without a row, or all of a smaller corpus, we say that there is no text


@dataclass(frozen=True)
class Skip:
    """A block that was skipped: one occurrence of it (corpus, epoch, number)."""

    corpus: int
    epoch: int
    number: int
    shard: str
    offset: int
    key: str
    kind: str
    message: str


class Track:
    """One lane's way through one corpus."""

    def __init__(self, plan: DataPlan, corpus: int, cursor: Cursor, ahead: Executor | None = None) -> None:
        self.plan, self.corpus, self.cursor = plan, corpus, cursor
        self.index = plan.corpora[corpus]
        self.skips: list[Skip] = []
        self._executor = ahead
        self._fetched: tuple[int, Future[io.BytesIO]] | None = None
        self._packed: PackedRows | None = None
        self._packed_at: tuple[int, int, int] | None = None
        self._row_keys: UInt64s = np.empty(0, dtype=np.uint64)
        self._masked: tuple[MaskRule, Rows] | None = None

    def prefetch(self) -> None:
        """Begin to fetch the bytes of the open block."""
        self._fetch(self.cursor.number)

    def skip(self, count: int, seq_len: int) -> None:
        """Skip the next `count` rows without masking them."""
        for _ in self._runs(count, seq_len):
            pass

    def take(self, count: int, seq_len: int, rule: MaskRule, is_constant: bool) -> list[RowRange]:
        """The next `count` rows of `seq_len` slots, masked.

        Args:
            is_constant: the rule holds for more steps, so it pays to mask the whole block at once.
        """
        part = self._take_masked(count, seq_len, rule)
        if part:
            return [part]
        return [self._masked_part(packed, run, rule, is_constant) for packed, run in self._runs(count, seq_len)]

    def _take_masked(self, count: int, seq_len: int, rule: MaskRule) -> RowRange | None:
        """The next rows, if the open block has them masked already; else None. It nearly always has, so this must be fast."""
        if self._masked is None or self._masked[0] is not rule:
            return None
        number, reads = self.cursor
        if self._packed_at != (number, len(reads), seq_len):
            return None
        taken = reads[-1][1]
        end = taken + count
        if not count or end > len(self._masked[1]):
            return None
        self.cursor = Cursor(number, (*reads[:-1], (seq_len, end)))
        return RowRange(self._masked[1], taken, end)

    def _masked_part(self, packed: PackedRows, run: slice, rule: MaskRule, is_constant: bool) -> RowRange:
        if not is_constant:
            return RowRange(self._mask(packed, run, rule), 0, run.stop - run.start)
        if self._masked is None or (self._masked[0] is not rule and self._masked[0] != rule):
            self._masked = rule, self._mask(packed, slice(None), rule)
        return RowRange(self._masked[1], run.start, run.stop)

    def _mask(self, packed: PackedRows, run: slice, rule: MaskRule) -> Rows:
        tokens, starts = packed.tokens[run], packed.starts[run]
        input_ids, chosen = mask_rows(tokens, starts, self._row_keys[run], rule, self.plan.tokenizer)
        return Rows(tokens, input_ids, starts, chosen)

    def _runs(self, count: int, seq_len: int) -> Iterator[tuple[PackedRows, slice]]:
        """The next `count` rows as runs inside one block each. Moves the cursor past each run."""
        empty: set[int] = set()
        while count:
            self.cursor = self.cursor.at(seq_len)
            packed = self._open()
            if packed is None or (not packed.count and len(self.cursor.reads) == 1):
                self._count_empty(empty)
            if packed is not None:
                taken = self.cursor.reads[-1][1]
                end = min(taken + count, packed.count)
                if end > taken:
                    self.cursor = self.cursor.after(end - taken)
                    count -= end - taken
                    yield packed, slice(taken, end)
            if count:
                self.cursor = Cursor(self.cursor.number + self.plan.lanes)

    def _count_empty(self, empty: set[int]) -> None:
        empty.add(self._place(self.cursor.number)[1])
        if len(empty) >= min(len(self.index.train_blocks), MOST_EMPTY_BLOCKS):
            what = f"; the last that was skipped: {self.skips[-1].message}" if self.skips else ""
            raise UserError(f"the corpus in {self.index.folder} has no token for training: no text to learn{what}")

    def _place(self, number: int) -> tuple[int, int]:
        """Epoch and block of the lane's block number q."""
        epoch, place = block_at(self.plan.seed, self.index.digest, number, len(self.index.train_blocks))
        return epoch, int(self.index.train_blocks[place])

    def _open(self) -> PackedRows | None:
        """The open block's rows at the cursor's sequence length. None: the block is bad, and skipped."""
        cursor = self.cursor
        # Earlier lengths never change while a block is open, so their count and the last length identify all of them.
        place = (cursor.number, len(cursor.reads), cursor.reads[-1][0])
        if self._packed is not None and self._packed_at == place:
            return self._packed
        epoch, block = self._place(cursor.number)
        try:
            documents = self._documents(block)
        except DataFault as fault:
            if not self.plan.skips_bad:
                raise
            where = (self.corpus, epoch, cursor.number, fault.shard, fault.offset, fault.key, fault.kind)
            self.skips.append(Skip(*where, str(fault)))
            return None
        identity = (self.plan.seed, self.index.digest, epoch, block)
        self._packed = pack_after(documents, cursor.reads, make_key(*identity, "pack"), self.plan.tokenizer)
        self._row_keys = row_keys(make_key(*identity, "mask", *place[1:]), self._packed.count)
        self._packed_at, self._masked = place, None
        return self._packed

    def _documents(self, block: int) -> Tokenized:
        self._fetch(self.cursor.number)
        stream = None
        if self._fetched:
            stream = self._fetched[1].result()
            self._fetch(self.cursor.number + self.plan.lanes)
        return self.index.tokenized(block, "train", self.plan.tokenizer, stream)

    def _fetch(self, number: int) -> None:
        if self._executor and (self._fetched is None or self._fetched[0] != number):
            _, block = self._place(number)
            self._fetched = number, self._executor.submit(self.index.read, block)


class Lane:
    """One virtual reader. Its rows come from the corpora by their weights."""

    def __init__(self, plan: DataPlan, number: int, cursors: LaneCursors, ahead: Executor | None = None) -> None:
        self.plan, self.number = plan, number
        self.tracks = [Track(plan, corpus, cursor, ahead) for corpus, cursor in enumerate(cursors)]

    @property
    def cursors(self) -> LaneCursors:
        return tuple(track.cursor for track in self.tracks)

    def take(self, step_plan: StepPlan) -> list[RowRange]:
        """This lane's rows of a step, masked."""
        phase, _, rule, is_constant = step_plan
        if len(self.tracks) == 1:
            return self.tracks[0].take(step_plan.rows, phase.seq_len, rule, is_constant)
        sources = self._sources(step_plan)
        parts = [
            part
            for corpus, track in enumerate(self.tracks)
            for part in track.take(int((sources == corpus).sum()), phase.seq_len, rule, is_constant)
        ]
        # Parts stand corpus by corpus: the inverse of that sort puts each row where its source says.
        place = np.argsort(np.argsort(sources, kind="stable"), kind="stable")
        return [RowRange(Rows.gather(parts).take(place), 0, step_plan.rows)]

    def skip(self, step_plan: StepPlan) -> None:
        """Skip this lane's rows of a step without masking them."""
        sources = self._sources(step_plan)
        for corpus, track in enumerate(self.tracks):
            track.skip(int((sources == corpus).sum()), step_plan.phase.seq_len)

    def skipped(self) -> list[Skip]:
        """The blocks that were skipped since the last call."""
        skips = [skip for track in self.tracks for skip in track.skips]
        for track in self.tracks:
            track.skips.clear()
        return skips

    def _sources(self, step_plan: StepPlan) -> NDArray[np.int64]:
        """The corpus of each of this lane's rows in a step."""
        phase, done, *_ = step_plan
        return corpus_of_rows(phase.weights, self.plan.lanes, self.number, phase.rows_before(done), step_plan.rows)


def row_keys(key: int, rows: int) -> UInt64s:
    """A key for each row of a block, from which its masks follow; uint64 [rows]."""
    return hash64(key, np.arange(rows, dtype=np.uint64))


def rows_of_step(lanes: Sequence[Lane], step: int) -> Rows:
    """The rows of a step of several lanes, in their order."""
    step_plan = lanes[0].plan.step_at(step)
    return Rows.gather([part for lane in lanes for part in lane.take(step_plan)])
