"""Rows to masked rows: a pure function of (rows, row keys, rule), vectorised over all slots.

Tokens are chosen for prediction in units. Each unit has a key, a hash of (row key, slot). So a mask depends on no other row,
rank, worker or batch.

- `token` (Devlin et al., 2019): every maskable token is a unit. A row's k smallest keys are predicted.
- `whole_word`: a unit is a word, as the tokenizer tells it (`Tokenizer.starts_word`). Units are taken in the order of their
  keys while they fit into what is left of k. One that does not fit is skipped, as in BERT's own
  `create_pretraining_data.py`. So fewer than k tokens are predicted only if every unit left is larger than what is missing.
- `span` (Joshi et al., 2020, SpanBERT): every run of words is cut into consecutive spans (`spans`). Words are then taken in
  the order (key of the span, place in the span) by the same rule.

With `exact`, k = round(rate * maskable) of the row. With `bernoulli`, units whose key lies below `rate` are candidates, and
k is a cap for each row, `MaskRule.most`. Special tokens, `[unused*]` and protected tokens are never predicted and never
drawn. No word and no span reaches across one of them, or across the border of a piece. Of the predicted tokens `mask_share`
become the mask token, `random_share` a random token, and the rest stay. Each token draws its own fate, or each unit.

Shapes: R rows, S slots a row, M maskable slots, U words (of all rows), W words of the richest row.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from maskloom.config import Masking
from maskloom.data.hashing import UInt64s, hash64
from maskloom.data.packing import ADDED, Bools, Int32s, Int64s
from maskloom.data.spans import length_shares, span_leads, threshold
from maskloom.errors import UserError
from maskloom.tokenizers.base import Tokenizer

CHOICE, ACTION, TOKEN, LENGTH = np.arange(4, dtype=np.uint64)  # a slot's draws
DRAWS = np.uint64(4)
KEY_BITS = 63
NO_UNIT = np.uint64(1 << KEY_BITS)  # above every unit's key
CLIPPED_EXPONENT = 20.0  # e^-20: about one row in 5 * 10^8 reaches its cap
LONGEST_SPAN_WORDS = 4096  # longer spans are cut there, unless a row has more slots
# For the cap: tokens of the word that a token belongs to, on average. In English, BERT's vocabulary has 1.4.
WORD_TOKENS = 2.0


@dataclass(frozen=True)
class MaskRule:
    """What is predicted, and what becomes of it; see `config.Masking`. `protected` holds ids."""

    rate: float
    mask_share: float = 0.8
    random_share: float = 0.1
    unit: Literal["token", "whole_word", "span"] = "token"
    draw: Literal["exact", "bernoulli"] = "exact"
    span_p: float = 0.2
    span_max_words: int = 10
    replace_unit: Literal["token", "unit"] = "token"
    protected: tuple[int, ...] = ()

    @staticmethod
    def of(masking: Masking, tokenizer: Tokenizer) -> MaskRule:
        """The rule of a configuration, at `masking.rate`.

        Raises:
            UserError: protected tokens that do not exist, or so many that no token of the vocabulary can be predicted.
                Also whole words or spans, if the tokenizer's tokens do not say where a word begins.
        """
        if masking.unit != "token" and not tokenizer.knows_words:
            raise UserError(
                f"masking.unit {masking.unit} needs a tokenizer whose tokens say where a word begins. {tokenizer.source} is of "
                f"kind {tokenizer.kind}, which does not: every token would count as a word. Set masking.unit to token, or "
                "--import the module that adds its kind"
            )
        protected = _ids_of(masking.protected, tokenizer)
        if protected and not np.delete(tokenizer.is_maskable, protected).any():
            raise UserError(
                f"masking.protected: no token is left in the vocabulary of {tokenizer.source} that could be predicted: "
                "remove some of them"
            )
        return MaskRule(
            masking.rate,
            masking.mask_share,
            masking.random_share,
            masking.unit,
            masking.draw,
            masking.span_p,
            masking.span_max_words,
            masking.replace_unit,
            protected,
        )

    @staticmethod
    def held_out(masking: Masking, rate: float, tokenizer: Tokenizer) -> MaskRule:
        """The rule of the evaluation of a run: single tokens at a rate of its own, and never what the run protects."""
        return MaskRule(rate, protected=MaskRule.of(masking, tokenizer).protected)

    def maskable(self, tokenizer: Tokenizer) -> Bools:
        """Which tokens may be predicted and drawn, bool [vocabulary]."""
        if not self.protected:
            return tokenizer.is_maskable
        is_maskable = tokenizer.is_maskable.copy()
        is_maskable[list(self.protected)] = False
        return is_maskable

    def at_rate(self, rate: float) -> MaskRule:
        """The same rule at another rate."""
        return replace(self, rate=rate)

    def count(self, maskable: Int64s) -> Int64s:
        """k with `exact`, for each number of maskable tokens; halves are rounded up."""
        count: Int64s = np.floor(self.rate * maskable + 0.5).astype(np.int64)
        return count

    def most(self, seq_len: int) -> int:
        """The most tokens that a row of `seq_len` slots can have predicted. At least two slots hold `cls` and `sep`.

        With `bernoulli` this is the cap, from Bernstein's inequality: the number of predicted tokens, a sum of
        independent units, exceeds `mean + t` with probability at most exp(-t^2 / 2 / (variance + size * t / 3)). With
        units of `size` tokens, variance = rate * (1 - rate) * size * maskable; t makes the bound e^-20.
        """
        maskable = max(seq_len - ADDED, 0)
        if self.draw == "exact":
            return int(self.count(np.asarray(maskable)))
        size = self._unit_tokens(seq_len)
        variance = self.rate * (1.0 - self.rate) * size * maskable
        third = CLIPPED_EXPONENT * size / 3.0
        excess = third + math.sqrt(third * third + 2.0 * CLIPPED_EXPONENT * variance)
        return min(maskable, math.ceil(self.rate * maskable + excess))

    def longest_span(self, seq_len: int) -> int:
        """Words of the longest span: what is asked for, as far as a row can tell it from a shorter one."""
        return min(self.span_max_words, max(seq_len, LONGEST_SPAN_WORDS))

    def _unit_tokens(self, seq_len: int) -> float:
        """Tokens of the unit that a token belongs to, on average over the tokens."""
        if self.unit == "token":
            return 1.0
        if self.unit == "whole_word":
            return WORD_TOKENS
        shares = length_shares(self.span_p, self.longest_span(seq_len))
        words = math.fsum(share * n for n, share in enumerate(shares, 1))
        return WORD_TOKENS * math.fsum(share * n * n for n, share in enumerate(shares, 1)) / words


def rate_at(masking: Masking, phase_rate: float | None, step: int, total_steps: int) -> float:
    """Mask rate of a step (0-based): the phase's own, else on the line from the first step to the last.

    Rounding keeps it monotone in the step. So the largest rate of a phase is that of its first or last step.
    """
    if phase_rate is not None:
        return phase_rate
    if masking.final_rate is None:
        return masking.rate
    return masking.rate + (masking.final_rate - masking.rate) * (step / max(total_steps - 1, 1))


def mask_rows(
    tokens: Int32s, starts: Bools, row_keys: UInt64s, rule: MaskRule, tokenizer: Tokenizer
) -> tuple[Int32s, Bools]:
    """Mask rows.

    Args:
        tokens: int32 [R, S].
        starts: bool [R, S]; True in the first slot of every piece and of the padding.
        row_keys: uint64 [R]; what identifies a row in this epoch.

    Returns:
        input ids int32 [R, S], and bool [R, S]: which slots are predicted (their targets are `tokens` there).
    """
    is_maskable, random_ids = rule.maskable(tokenizer), tokenizer.random_ids
    if rule.protected:
        random_ids = np.flatnonzero(is_maskable).astype(np.int32)
    maskable = is_maskable.take(tokens)
    if rule.unit == "token":
        chosen = _choose_tokens(maskable, row_keys, rule)
        slots = leads = np.flatnonzero(chosen)
    else:
        slots, leads = _choose_words(maskable, tokenizer.starts_word(tokens, starts), starts, row_keys, rule)
        chosen = np.zeros(tokens.shape, dtype=bool)
        chosen.reshape(-1)[slots] = True
    action = _hash_at(row_keys, slots if rule.replace_unit == "token" else leads, tokens.shape[1], ACTION)
    masked = action < threshold(rule.mask_share)
    randomised = slots[(action < threshold(rule.mask_share + rule.random_share)) & ~masked]
    # The high half of the draw, scaled: no modulo bias that matters and no float.
    draw = _hash_at(row_keys, randomised, tokens.shape[1], TOKEN) >> np.uint64(32)
    number = (draw * np.uint64(len(random_ids))) >> np.uint64(32)
    input_ids = tokens.copy(order="C")
    flat = input_ids.reshape(-1)
    flat[slots[masked]] = tokenizer.mask_id
    flat[randomised] = random_ids[number.astype(np.int64)]
    return input_ids, chosen


def _choose_tokens(maskable: Bools, row_keys: UInt64s, rule: MaskRule) -> Bools:
    """Which slots are predicted if tokens are the units, bool [R, S]."""
    keys = _order_keys(row_keys, maskable.shape[1])
    np.copyto(keys, NO_UNIT, where=~maskable)
    if rule.draw == "exact":
        count = rule.count(maskable.sum(axis=1))
    else:
        count = np.minimum((keys < _candidate_limit(rule, keys)).sum(axis=1), rule.most(keys.shape[1]))
    # The smallest `count` keys of a row, no two of which are equal, are those up to the one at `count` in sorted order.
    ordered = np.sort(keys, axis=1)
    limit = np.where(count > 0, ordered[np.arange(len(keys)), count - 1] + np.uint64(1), np.uint64(0))
    below: Bools = keys < limit[:, None]
    return below


def _choose_words(
    maskable: Bools, starts_word: Bools, starts: Bools, row_keys: UInt64s, rule: MaskRule
) -> tuple[Int64s, Int64s]:
    """Which slots are predicted if the units are words or spans of words.

    Args:
        maskable: bool [R, S].
        starts_word: bool [R, S], from `Tokenizer.starts_word`.
        starts: bool [R, S]; True in the first slot of every piece and of the padding.

    Returns:
        for each predicted slot, in order: its place in the flattened rows, and that of its unit's first slot.
    """
    seq_len = maskable.shape[1]
    goes_on = np.zeros_like(maskable)  # text stands before it in its piece: it may belong to the same word and span
    goes_on[:, 1:] = maskable[:, :-1]
    goes_on &= ~starts
    is_unit = maskable & (starts_word | ~goes_on)
    words = np.flatnonzero(is_unit)
    sizes = np.diff(np.cumsum(maskable, dtype=np.int64)[words], append=np.count_nonzero(maskable) + 1)
    leads = words
    keys = _order_keys(row_keys, seq_len)
    if rule.unit == "span":
        draws = hash64(row_keys[:, None], _slots(seq_len) * DRAWS + LENGTH).reshape(-1)[words]
        most = rule.longest_span(seq_len)
        leads = words[span_leads(~goes_on.reshape(-1)[words], draws, rule.span_p, most)]
        # The lowest bits of a key hold the slot, so that this is the span's draw with the word's own slot.
        keys.reshape(-1)[words] = keys.reshape(-1)[leads] + (words - leads).astype(np.uint64)
    if rule.draw == "exact":
        budget = rule.count(maskable.sum(axis=1))
    else:
        budget = np.full(len(maskable), rule.most(seq_len))
        is_unit &= keys < _candidate_limit(rule, keys)
    np.copyto(keys, NO_UNIT | _slots(seq_len), where=~is_unit)
    size_at = np.zeros(maskable.size, dtype=np.int64)
    size_at[words] = sizes
    taken = np.flatnonzero(_take_in_order(keys, size_at, budget)[words])
    counts = sizes[taken]
    # Each word's slots: its first, and as many as it has tokens.
    before = np.cumsum(counts) - counts
    slots = np.repeat(words[taken] - before, counts) + np.arange(counts.sum())
    return slots, np.repeat(leads[taken], counts)


def _take_in_order(keys: UInt64s, size_at: Int64s, budget: Int64s) -> Bools:
    """Take the units of each row in the order of their keys while they fit into its budget.

    Args:
        keys: uint64 [R, S]; order key of the unit that begins in a slot. If none does, NO_UNIT and the slot.
        size_at: int64 [R*S]; tokens of the unit that begins in a slot.
        budget: int64 [R]; tokens.

    Returns:
        bool [R*S]: which slots begin a unit that is taken.
    """
    seq_len = keys.shape[1]
    keys = np.sort(keys, axis=1)
    taken = np.zeros(keys.size, dtype=bool)
    room = budget.copy()
    # As many units as the budget has tokens fill nearly every row. Only rows with room left look at the others.
    near = min(int(budget.max(initial=0)), seq_len)
    for columns in (slice(0, near), slice(near, seq_len)):
        rows = np.flatnonzero(room > 0)
        ordered = keys[rows, columns]
        places = (ordered & _low(seq_len)).astype(np.int64) + rows[:, None] * seq_len
        sizes = np.where(ordered < NO_UNIT, size_at[places], 0)
        now = fill(sizes, room[rows])
        taken[places[now]] = True
        room[rows] -= np.where(now, sizes, 0).sum(axis=1)
    return taken


def fill(sizes: Int64s, budget: Int64s) -> Bools:
    """Take the units of each row in order while they fit; skip those that do not.

    Each turn takes all that fit up to the first that does not. That one stays too large, as do all others of its size. So
    there are no more turns than sizes in a row (at most 1 + sqrt(2 S)), and most rows are full after two.

    Args:
        sizes: int64 [R, W]; tokens of each unit in order; 0 stands for none.
        budget: int64 [R].

    Returns:
        bool [R, W].
    """
    taken = np.zeros(sizes.shape, dtype=bool)
    room = budget.copy()
    rows = np.arange(len(sizes))
    while len(rows):
        here, limit = sizes[rows], room[rows, None]
        here[taken[rows] | (here > limit)] = 0
        now = (np.cumsum(here, axis=1) <= limit) & (here > 0)
        taken[rows] |= now
        room[rows] -= np.where(now, here, 0).sum(axis=1)
        rows = rows[((here > 0) & ~now).any(axis=1) & (room[rows] > 0)]
    return taken


def _candidate_limit(rule: MaskRule, keys: UInt64s) -> np.uint64:
    """The order key below which a unit is a candidate with `bernoulli`: the same for all words of a span."""
    return np.uint64(int(rule.rate * 2.0**KEY_BITS)) & ~_low(keys.shape[1])


def _order_keys(row_keys: UInt64s, seq_len: int) -> UInt64s:
    """A key to sort by for each slot, uint64 [R, S]: 63 bits, the lowest of which hold the slot, so that no two are equal."""
    slots = _slots(seq_len)
    keys = hash64(row_keys[:, None], slots * DRAWS + CHOICE)
    keys &= (NO_UNIT - np.uint64(1)) & ~_low(seq_len)
    keys |= slots
    return keys


def _low(seq_len: int) -> np.uint64:
    """The bits of an order key that hold the slot."""
    return np.uint64((1 << (seq_len - 1).bit_length()) - 1)


def _slots(seq_len: int) -> UInt64s:
    return np.arange(seq_len, dtype=np.uint64)


def _hash_at(row_keys: UInt64s, places: Int64s, seq_len: int, draw: np.uint64) -> UInt64s:
    """A draw of each place in the flattened rows."""
    rows = places // seq_len
    return hash64(row_keys[rows], (places - rows * seq_len).astype(np.uint64) * DRAWS + draw)


def _ids_of(tokens: tuple[str, ...], tokenizer: Tokenizer) -> tuple[int, ...]:
    if not tokens:
        return ()
    vocabulary = tokenizer.vocabulary
    absent = [token for token in tokens if token not in vocabulary]
    if absent:
        near = {token: difflib.get_close_matches(token, vocabulary, n=1) for token in absent}
        hints = "; ".join(f"{token!r}" + (f" (near: {near[token][0]!r})" if near[token] else "") for token in absent)
        raise UserError(
            f"masking.protected: the vocabulary of {tokenizer.source} has no {hints}. Give tokens as the vocabulary "
            "writes them, or remove them"
        )
    return tuple(sorted({vocabulary[token] for token in tokens}))
