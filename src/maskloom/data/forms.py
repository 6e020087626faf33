"""Masked rows in the forms that models of Hugging Face's take.

    packed   all pieces one after the other, without padding, and where each begins: for attention of variable length
    padded   one piece a row, padded to the longest: for every attention

Both hold the same pieces, the same masks and the same labels. In neither does attention cross from one document to another.

Shapes: R rows, S slots a row, N pieces, T tokens of all pieces, L tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from maskloom.data.rows import Rows

IGNORED = -100
"""The label of a token that is not predicted, in every loss of Hugging Face's and torch's."""
Batch = dict[str, Any]
"""Name -> tensor, or a whole number."""


class Flat(NamedTuple):
    """The pieces of some rows, one after the other, without padding.

    Attributes:
        input_ids: int64 [T].
        labels: int64 [T].
        lengths: int64 [N]; tokens of each piece.
        positions: int64 [T]; place of each token in its piece.
    """

    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    lengths: NDArray[np.int64]
    positions: NDArray[np.int64]


def flatten(rows: Rows, pad_id: int) -> Flat:
    """Rows without their padding. No piece begins with a padding token."""
    tokens = rows.tokens.reshape(-1)
    begins = np.flatnonzero(rows.starts)
    lengths = np.diff(np.append(begins, tokens.size))
    is_text = tokens[begins] != pad_id
    kept = np.repeat(is_text, lengths)
    lengths = lengths[is_text]
    labels = np.where(rows.chosen.reshape(-1), tokens, IGNORED)[kept].astype(np.int64)
    input_ids = rows.input_ids.reshape(-1)[kept].astype(np.int64)
    positions = np.arange(len(input_ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return Flat(input_ids, labels, lengths, positions)


def packed(rows: Rows, pad_id: int, position_ids_start: int = 0) -> Batch:
    """All pieces in one row, with the names that Hugging Face's flash attention takes.

    Args:
        position_ids_start: position of the first token of a piece: `pad_token_id + 1` for RoBERTa and its kin, else 0.

    Returns:
        `input_ids`, `position_ids` and `labels`: int64 [1, T]. `cu_seq_lens_q` and `cu_seq_lens_k`: int32 [N + 1], where the
        pieces begin, and T. `max_length_q` and `max_length_k`: L.
    """
    flat = flatten(rows, pad_id)
    ends = torch.from_numpy(np.append(0, np.cumsum(flat.lengths)).astype(np.int32))
    longest = int(flat.lengths.max(initial=0))
    return {
        "input_ids": torch.from_numpy(flat.input_ids)[None],
        "position_ids": torch.from_numpy(flat.positions + position_ids_start)[None],
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends.clone(),
        "max_length_q": longest,
        "max_length_k": longest,
        "labels": torch.from_numpy(flat.labels)[None],
    }


def padded(rows: Rows, pad_id: int, position_ids_start: int = 0) -> Batch:
    """One piece a row, in the order of the pieces. Models number the positions of such rows themselves.

    Returns:
        `input_ids`, `attention_mask` and `labels`: int64 [N, L].
    """
    flat = flatten(rows, pad_id)
    shape = len(flat.lengths), int(flat.lengths.max(initial=0))
    place = np.repeat(np.arange(shape[0]), flat.lengths), flat.positions
    input_ids, labels, mask = np.full(shape, pad_id), np.full(shape, IGNORED), np.zeros(shape, np.int64)
    input_ids[place], labels[place], mask[place] = flat.input_ids, flat.labels, 1
    return {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(mask),
        "labels": torch.from_numpy(labels),
    }


FORMS: dict[str, Callable[[Rows, int, int], Batch]] = {"packed": packed, "padded": padded}
