"""Masked rows: what the data layer gives, and what the model's micro-batches are made from.

Shapes: R rows, S slots a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from maskloom.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class Rows:
    """Masked rows.

    Attributes:
        tokens: int32 [R, S]; the text's own tokens, with padding at the end of a row.
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
    def none(seq_len: int) -> Rows:
        """No rows, of S = `seq_len`."""
        ids, flags = np.zeros((0, seq_len), np.int32), np.zeros((0, seq_len), bool)
        return Rows(ids, ids, flags, flags)

    @staticmethod
    def concatenate(parts: Sequence[Rows]) -> Rows:
        return Rows(*(np.concatenate([getattr(part, name) for part in parts]) for name in FIELDS))

    @staticmethod
    def gather(parts: Sequence[RowRange]) -> Rows:
        """The rows of all parts, one after the other."""
        return Rows(
            *(np.concatenate([getattr(rows, name)[begin:end] for rows, begin, end in parts]) for name in FIELDS)
        )

    def take(self, rows: slice | NDArray[np.int64]) -> Rows:
        """Some of the rows: a view for a slice, a copy for an array of numbers."""
        return Rows(*(getattr(self, name)[rows] for name in FIELDS))

    def update(self, digest: hashlib._Hash) -> None:
        """Feed every byte of these rows to a digest, in a layout that no platform changes."""
        for name in FIELDS:
            array = getattr(self, name)
            digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())


class RowRange(NamedTuple):
    """The rows begin, ..., end - 1 of `rows`. A step has many: they are copied once, when they are gathered."""

    rows: Rows
    begin: int
    end: int


FIELDS = tuple(field.name for field in fields(Rows))


def count_text_tokens(rows: Rows, tokenizer: Tokenizer) -> int:
    """Tokens that carry text: neither padding nor `cls` nor `sep`. Every rate that is printed counts these."""
    tokens = rows.tokens
    added = (tokens == tokenizer.pad_id) | (tokens == tokenizer.cls_id) | (tokens == tokenizer.sep_id)
    return int(tokens.size - np.count_nonzero(added))


def count_slots(rows: Rows, tokenizer: Tokenizer, windows: Sequence[int | None] = (None,)) -> tuple[int, list[int]]:
    """What the encoder and its attention have to compute.

    Args:
        windows: slots that attention sees to either side; None for the whole piece.

    Returns:
        slots that are not padding (the first and the last of a piece are not), and for each window the pairs of slots that see
        each other, each slot with itself included: without a window the sum over pieces of the square of their slots.
    """
    tokens = rows.tokens.reshape(-1)
    begins = np.flatnonzero(rows.starts)
    lengths = np.diff(np.append(begins, tokens.size))
    lengths = lengths[tokens[begins] != tokenizer.pad_id]
    return int(lengths.sum()), [int(count_pairs(lengths, window).sum()) for window in windows]


def count_pairs(lengths: NDArray[np.int64], window: int | None) -> NDArray[np.int64]:
    """Pairs of slots within each piece that are at most `window` apart, in both orders; int64 [N] to int64 [N]."""
    reach = lengths - 1 if window is None else np.minimum(window, lengths - 1)
    pairs: NDArray[np.int64] = lengths * (2 * reach + 1) - reach * (reach + 1)
    return pairs
