"""Documents to rows: a pure function of (documents, sequence length, key).

Documents are shuffled and cut into pieces of at most S slots. A piece begins with the tokenizer's `cls` token and ends with
its `sep` token. Pieces are packed best-fit-decreasing into rows of S slots; then the rows are shuffled. Packing never looks
beyond one block. So a block's rows depend on nothing else, and resuming needs no buffer. The price: the last rows of a block
are not full (about 2 % of the slots at 128 KiB).

Everything but the choice of a bin is vectorised. Pieces that fill a row need no choice, so the loop sees at most one piece
of each document.

Shapes: R rows, S slots a row, N pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maskloom.data.hashing import make_key, permutation
from maskloom.tokenizers.base import Tokenized, Tokenizer

Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]
Bools = NDArray[np.bool_]
ADDED = 2  # slots of a piece that hold no text: `cls` and `sep`


@dataclass(frozen=True)
class PackedRows:
    """Rows of one block.

    Attributes:
        tokens: int32 [R, S]; padding at the end of a row.
        starts: bool [R, S]; True in the first slot of every piece and of the padding.
        begins: int64 [N]; the first slot of each piece, counted through all rows, ascending.
        lengths: int64 [N]; of each piece in slots, `cls` and `sep` included.
    """

    tokens: Int32s
    starts: Bools
    begins: Int64s
    lengths: Int64s

    @property
    def count(self) -> int:
        """R."""
        return len(self.tokens)

    def pieces_from(self, row: int) -> Tokenized:
        """The text tokens of each piece from `row` on, without `cls` and `sep`."""
        first = int(np.searchsorted(self.begins, row * self.tokens.shape[1]))
        lengths = self.lengths[first:] - ADDED
        return Tokenized(self.tokens.reshape(-1)[_ranges(self.begins[first:] + 1, lengths)], lengths)


def pack(documents: Tokenized, seq_len: int, key: int, tokenizer: Tokenizer) -> PackedRows:
    """Pack token ids into rows.

    Args:
        documents: empty ones give nothing.
        seq_len: S, slots a row.
        key: 64-bit key of both shuffles.
        tokenizer: gives the ids of `cls`, `sep` and `pad`.

    Returns:
        The rows; none if no document has a token.
    """
    begins, lengths = _cut(documents, seq_len - ADDED, permutation(make_key(key, "documents"), len(documents)))
    order = np.argsort(-lengths, kind="stable")  # of the pieces, longest first
    bins = best_fit_decreasing(lengths[order] + ADDED, seq_len)
    count = int(bins.max()) + 1 if len(bins) else 0
    place = np.empty(count, np.int64)  # the row that a bin becomes
    place[permutation(make_key(key, "rows"), count)] = np.arange(count)
    rows = place[bins]
    by_row = np.argsort(rows, kind="stable")
    pieces, rows = order[by_row], rows[by_row]
    sizes = lengths[pieces] + ADDED
    ends = np.cumsum(sizes)
    used = np.bincount(rows, sizes, count).astype(np.int64)  # slots of each row
    row_begins = np.cumsum(used) - used
    slots = rows * seq_len + (ends - sizes) - row_begins[rows]
    tokens = np.full(count * seq_len, tokenizer.pad_id, dtype=np.int32)
    tokens[slots] = tokenizer.cls_id
    tokens[slots + sizes - 1] = tokenizer.sep_id
    tokens[_ranges(slots + 1, sizes - ADDED)] = documents.ids[_ranges(begins[pieces], sizes - ADDED)]
    starts = np.zeros(count * seq_len, dtype=bool)
    starts[slots] = True
    padded = np.flatnonzero(used < seq_len)
    starts[padded * seq_len + used[padded]] = True
    return PackedRows(tokens.reshape(count, seq_len), starts.reshape(count, seq_len), slots, sizes)


def pack_after(documents: Tokenized, reads: Sequence[tuple[int, int]], key: int, tokenizer: Tokenizer) -> PackedRows:
    """The rows of a block at its last sequence length, after rows were taken at earlier ones.

    When the sequence length changes, the pieces of the rows not yet taken are packed again. Nothing is repeated, and nothing
    is lost.

    Args:
        reads: (sequence length, rows taken) in order. The rows taken at the last length are still in the result.
    """
    rest = documents
    for depth, (seq_len, taken) in enumerate(reads[:-1]):
        rest = pack(rest, seq_len, make_key(key, depth), tokenizer).pieces_from(taken)
    return pack(rest, reads[-1][0], make_key(key, len(reads) - 1), tokenizer)


def best_fit_decreasing(lengths: Int64s, capacity: int) -> Int64s:
    """The bin of each item, int64 [items]: each goes where it leaves the least room (Johnson, 1973).

    Args:
        lengths: longest first, each 1..capacity.
        capacity: room of a bin.
    """
    full = int(np.searchsorted(-lengths, -capacity, side="right"))  # these fill a bin each
    bins = list(range(full))
    count = full
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # room left -> numbers of the open bins
    rooms = 0  # bit r is set if with_room[r] is not empty: the smallest fitting room is one bit scan away
    for length in lengths[full:].tolist():
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            chosen = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, chosen = capacity, count
            count += 1
        bins.append(chosen)
        left = room - length
        if left:
            with_room[left].append(chosen)
            rooms |= 1 << left
    return np.asarray(bins, dtype=np.int64)


def _cut(documents: Tokenized, most: int, order: Int64s) -> tuple[Int64s, Int64s]:
    """Where each piece begins in `documents.ids`, and its length in tokens: documents in `order`, `most` tokens a piece."""
    totals = documents.lengths[order]
    counts = -(-totals // most)
    before = _ranges(np.zeros(len(counts), np.int64), counts) * most  # tokens of the document before a piece
    lengths = np.minimum(np.repeat(totals, counts) - before, most)
    return np.repeat((documents.ends - documents.lengths)[order], counts) + before, lengths


def _ranges(begins: Int64s, lengths: Int64s) -> Int64s:
    """begins[0], begins[0] + 1, ... for lengths[0] numbers, then the same from begins[1], and so on."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    numbers: Int64s = np.arange(total) + np.repeat(begins - (ends - lengths), lengths)
    return numbers
