"""How far each lane has come: a few integers a lane, and all the state that the data has."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

from maskloom.config_values import LEAST_SEQ_LEN
from maskloom.scalars import is_count


class Cursor(NamedTuple):
    """A lane's place in one corpus.

    Attributes:
        number: q of the open block.
        reads: (sequence length, rows taken) for each sequence length used inside the open block, the current one last.
            Empty before its first row.
    """

    number: int
    reads: tuple[tuple[int, int], ...] = ()

    def at(self, seq_len: int) -> Cursor:
        """The same place, with rows of `seq_len` to be read next."""
        if self.reads and self.reads[-1][0] == seq_len:
            return self
        reads = self.reads if self.reads and self.reads[-1][1] else self.reads[:-1]
        return Cursor(self.number, (*reads, (seq_len, 0)))

    def after(self, rows: int) -> Cursor:
        """The place `rows` rows further inside the open block."""
        seq_len, taken = self.reads[-1]
        return Cursor(self.number, (*self.reads[:-1], (seq_len, taken + rows)))

    def to_json(self) -> list[object]:
        return [self.number, *([seq_len, taken] for seq_len, taken in self.reads)]

    @staticmethod
    def from_json(items: list[Any]) -> Cursor:
        """The cursor that `to_json` gave as items. Raises TypeError, LookupError or ValueError for other items."""
        cursor = Cursor(items[0], tuple((seq_len, taken) for seq_len, taken in items[1:]))
        counts = all(map(is_count, (cursor.number, *itertools.chain(*cursor.reads))))
        if not counts or any(seq_len < LEAST_SEQ_LEN for seq_len, _ in cursor.reads):
            raise ValueError(f"{items!r} is not a place in a corpus")
        return cursor


LaneCursors = tuple[Cursor, ...]
"""A lane's place in each corpus."""


def first_cursors(lanes: int, corpora: int = 1) -> list[LaneCursors]:
    """Each lane's place before the first step: lane v starts at block v."""
    return [(Cursor(lane),) * corpora for lane in range(lanes)]
