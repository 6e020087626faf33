"""Rows to masked rows: a pure function of (rows, keys), vectorised over all slots.

Token masking as in BERT (Devlin et al., 2019): exactly k = round(rate * maskable) tokens of a row are predicted, of which
`mask_share` become [MASK], `random_share` a random token, and the rest stay. Special tokens and `[unused*]` are never
masked and never drawn. Every draw is a hash of (row key, slot), so that it depends on no rank, worker or batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maskloom.data.order import UInt64s, hash64
from maskloom.tokenizer import Tokenizer

DRAWS = 3  # a slot's draws: is it chosen, what becomes of it, which random token
LAST = np.uint64(0xFFFFFFFFFFFFFFFF)


@dataclass(frozen=True)
class MaskRule:
    """What share of the tokens is predicted, and what becomes of them; see `config.Masking`."""

    rate: float
    mask_share: float = 0.8
    random_share: float = 0.1

    def count(self, maskable: NDArray[np.int64]) -> NDArray[np.int64]:
        """k for each number of maskable tokens, halves rounded up."""
        count: NDArray[np.int64] = np.floor(self.rate * maskable + 0.5).astype(np.int64)
        return count

    def most(self, seq_len: int) -> int:
        """The most tokens that a row of `seq_len` slots can have predicted."""
        return int(self.count(np.asarray([max(seq_len - 2, 0)]))[0])


def mask_rows(
    tokens: NDArray[np.int32], row_keys: UInt64s, rule: MaskRule, tokenizer: Tokenizer
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Mask rows.

    Args:
        tokens: int32 [R, S].
        row_keys: uint64 [R]; what identifies a row in this epoch.

    Returns:
        input ids int32 [R, S], and bool [R, S]: which slots are predicted (their targets are `tokens` there).
    """
    slots = np.arange(tokens.shape[1], dtype=np.uint64) * np.uint64(DRAWS)
    keys = row_keys[:, None]
    maskable = tokenizer.is_maskable[tokens]
    # Unmaskable slots get the largest key: the k-th smallest key of a row is then always a maskable slot's.
    rank_keys = np.where(maskable, hash64(keys, slots) >> np.uint64(1), LAST)
    ranks = np.argsort(np.argsort(rank_keys, axis=1, kind="stable"), axis=1, kind="stable")
    chosen = (ranks < rule.count(maskable.sum(axis=1))[:, None]) & maskable

    action = hash64(keys, slots + np.uint64(1))
    masked = chosen & (action < _threshold(rule.mask_share))
    randomised = chosen & ~masked & (action < _threshold(rule.mask_share + rule.random_share))
    # The high half of the draw, scaled: no modulo bias that matters and no float.
    draw = hash64(keys, slots + np.uint64(2)) >> np.uint64(32)
    number = (draw * np.uint64(len(tokenizer.random_ids))) >> np.uint64(32)
    input_ids = np.where(masked, np.int32(tokenizer.mask_id), tokens)
    input_ids = np.where(randomised, tokenizer.random_ids[number.astype(np.int64)], input_ids)
    return input_ids.astype(np.int32), chosen


def _threshold(share: float) -> np.uint64:
    """The integer below which a uniform 64-bit draw falls with probability `share`: floats differ across machines."""
    return LAST if share >= 1.0 else np.uint64(int(share * 2.0**64))
