"""Documents to rows: a pure function of (documents, sequence length, key).

Documents are shuffled, cut into pieces `[CLS] ... [SEP]` of at most S slots, and packed best-fit-decreasing into rows of
S slots; then the rows are shuffled. Packing never looks beyond one block, so a block's rows depend on nothing else, and
resuming needs no buffer. What it gives up: the last rows of a block are not full (about 2 % of the slots at 128 KiB).

Shapes: R rows, S slots a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maskloom.data.order import make_key, permutation
from maskloom.tokenizer import Tokenizer

Int32s = NDArray[np.int32]
Bools = NDArray[np.bool_]
ADDED = 2  # [CLS] and [SEP]


@dataclass(frozen=True)
class PackedRows:
    """Rows of one block.

    Attributes:
        tokens: int32 [R, S]; padding at the end of a row.
        starts: bool [R, S]; True in the first slot of every piece and of the padding.
        lengths: for each row, the lengths of its pieces in slots, [CLS] and [SEP] included.
    """

    tokens: Int32s
    starts: Bools
    lengths: tuple[tuple[int, ...], ...]

    def pieces_from(self, row: int) -> list[Int32s]:
        """The text tokens of each piece from `row` on, without [CLS] and [SEP]."""
        pieces: list[Int32s] = []
        for tokens, lengths in zip(self.tokens[row:], self.lengths[row:], strict=True):
            ends = np.cumsum(lengths)
            pieces += [tokens[end - length + 1 : end - 1] for end, length in zip(ends, lengths, strict=True)]
        return pieces


def pack(documents: Sequence[Int32s], seq_len: int, key: int, tokenizer: Tokenizer) -> PackedRows:
    """Pack token ids into rows.

    Args:
        documents: int32 [tokens] each, without special tokens; empty ones give nothing.
        seq_len: S, slots a row.
        key: 64-bit key of both shuffles.
        tokenizer: gives the ids of [CLS], [SEP] and [PAD].

    Returns:
        The rows; none where no document has a token.
    """
    most = seq_len - ADDED
    shuffled = permutation(make_key(key, "documents"), len(documents))
    pieces = [
        documents[number][start : start + most]
        for number in shuffled
        for start in range(0, len(documents[number]), most)
    ]
    rows = best_fit_decreasing([len(piece) + ADDED for piece in pieces], seq_len)
    rows = [rows[number] for number in permutation(make_key(key, "rows"), len(rows))]
    tokens = np.full((len(rows), seq_len), tokenizer.pad_id, dtype=np.int32)
    starts = np.zeros((len(rows), seq_len), dtype=bool)
    for number, members in enumerate(rows):
        slot = 0
        for member in members:
            end = slot + len(pieces[member]) + ADDED
            starts[number, slot] = True
            tokens[number, slot] = tokenizer.cls_id
            tokens[number, slot + 1 : end - 1] = pieces[member]
            tokens[number, end - 1] = tokenizer.sep_id
            slot = end
        if slot < seq_len:
            starts[number, slot] = True
    lengths = tuple(tuple(len(pieces[member]) + ADDED for member in members) for members in rows)
    return PackedRows(tokens, starts, lengths)


def pack_after(
    documents: Sequence[Int32s], reads: Sequence[tuple[int, int]], key: int, tokenizer: Tokenizer
) -> PackedRows:
    """The rows of a block at its last sequence length, after rows were taken at earlier ones.

    At a change of the sequence length, the pieces of the rows not yet taken are packed again: nothing is repeated and
    nothing is lost.

    Args:
        reads: (sequence length, rows taken) in order; the rows taken of the last one are not cut off.
    """
    rest: Sequence[Int32s] = documents
    for depth, (seq_len, taken) in enumerate(reads[:-1]):
        rest = pack(rest, seq_len, make_key(key, depth), tokenizer).pieces_from(taken)
    return pack(rest, reads[-1][0], make_key(key, len(reads) - 1), tokenizer)


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of item numbers: each item, longest first, goes where it leaves the least room (Johnson, 1973).

    Args:
        lengths: each 1..capacity.
        capacity: room of a bin.
    """
    bins: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # room left -> numbers of the open bins
    rooms = 0  # bit r is set where with_room[r] is not empty: the smallest fitting room is one bit scan away
    for item in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        length = lengths[item]
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            chosen = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, chosen = capacity, len(bins)
            bins.append([])
        bins[chosen].append(item)
        left = room - length
        if left:
            with_room[left].append(chosen)
            rooms |= 1 << left
    return bins
