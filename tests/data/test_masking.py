from __future__ import annotations

import hashlib
import json
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.data.masking import MaskRule, mask_rows
from maskloom.data.order import hash64
from maskloom.tokenizer import Tokenizer

shares = st.floats(0, 1)


@pytest.fixture(scope="module")
def with_unused(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with 20 `[unused*]` tokens, as published vocabularies have them."""
    tree = json.loads(tokenizer.definition)
    first = len(tree["model"]["vocab"])
    tree["model"]["vocab"] |= {f"[unused{number}]": first + number for number in range(20)}
    return Tokenizer(json.dumps(tree), "with unused tokens")


def random_rows(tokenizer: Tokenizer, rows: int, seq_len: int, seed: int) -> np.ndarray:
    """Any token anywhere, special ones and unused ones as well."""
    return np.random.default_rng(seed).integers(0, tokenizer.vocab_size, (rows, seq_len), dtype=np.int32)


def first_slots(tokens: np.ndarray) -> np.ndarray:
    """Rows of one piece each."""
    starts = np.zeros(tokens.shape, dtype=bool)
    starts[:, :1] = True
    return starts


def keys_of(rows: int, key: int = 1) -> np.ndarray:
    return hash64(key, np.arange(rows, dtype=np.uint64))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 20), st.integers(1, 80), st.integers(0, 2**32), shares, shares, shares)
def test_what_is_masked_and_how_many(
    with_unused: Tokenizer, rows: int, seq_len: int, seed: int, rate: float, mask_share: float, random_share: float
) -> None:
    rule = MaskRule(rate, mask_share, random_share * (1 - mask_share))
    tokens = random_rows(with_unused, rows, seq_len, seed)
    input_ids, chosen = mask_rows(tokens, first_slots(tokens), keys_of(rows, seed), rule, with_unused)
    assert input_ids.dtype == np.int32
    assert input_ids.shape == chosen.shape == tokens.shape
    maskable = with_unused.is_maskable[tokens]
    assert not (chosen & ~maskable).any()
    assert chosen.sum(axis=1).tolist() == [math.floor(rate * int(count) + 0.5) for count in maskable.sum(axis=1)]
    assert (input_ids == tokens)[~chosen].all()
    drawn = input_ids[chosen & (input_ids != tokens) & (input_ids != with_unused.mask_id)]
    assert np.isin(drawn, with_unused.random_ids).all()


@settings(max_examples=50, deadline=None)
@given(shares, st.integers(8, 600), st.integers(0, 600))
def test_no_row_has_more_predicted_than_the_rule_allows(rate: float, seq_len: int, fewer: int) -> None:
    """A row holds one piece at least, so that two of its slots are [CLS] and [SEP]."""
    rule = MaskRule(rate)
    maskable = max(seq_len - 2 - fewer, 0)
    assert int(rule.count(np.asarray([maskable]))[0]) <= rule.most(seq_len) <= seq_len - 2


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(0, 2**32))
def test_a_rows_mask_depends_on_no_other_row(with_unused: Tokenizer, rows: int, seed: int) -> None:
    tokens, keys, rule = random_rows(with_unused, rows, 40, seed), keys_of(rows, seed), MaskRule(0.3)
    together = mask_rows(tokens, first_slots(tokens), keys, rule, with_unused)
    for row in range(rows):
        alone = mask_rows(
            tokens[row : row + 1], first_slots(tokens[row : row + 1]), keys[row : row + 1], rule, with_unused
        )
        assert np.array_equal(alone[0][0], together[0][row])
        assert np.array_equal(alone[1][0], together[1][row])


def test_another_key_gives_another_mask(tokenizer: Tokenizer) -> None:
    tokens = np.full((1, 128), tokenizer.random_ids[0], dtype=np.int32)
    # 128 slots choose 19: two independent masks agree once in more than 10^22 cases.
    masks = {
        mask_rows(tokens, first_slots(tokens), keys_of(1, key), MaskRule(0.15), tokenizer)[1].tobytes()
        for key in range(50)
    }
    assert len(masks) == 50


def test_eighty_ten_ten(tokenizer: Tokenizer) -> None:
    rows, seq_len, rule = 400, 128, MaskRule(0.15, 0.8, 0.1)
    tokens = np.random.default_rng(5).choice(tokenizer.random_ids, (rows, seq_len)).astype(np.int32)
    input_ids, chosen = mask_rows(tokens, first_slots(tokens), keys_of(rows), rule, tokenizer)
    count = rows * math.floor(0.15 * seq_len + 0.5)
    assert chosen.sum() == count
    # A random token is by chance the one that stood there once in len(random_ids) draws.
    same_by_chance = 0.1 / len(tokenizer.random_ids)
    masked, same = input_ids == tokenizer.mask_id, input_ids == tokens
    for seen, expected in (
        (masked & chosen, 0.8),
        (same & chosen, 0.1 + same_by_chance),
        (chosen & ~masked & ~same, 0.1 - same_by_chance),
    ):
        assert abs(int(seen.sum()) - count * expected) < 5 * math.sqrt(count * expected * (1 - expected))


def test_every_slot_is_chosen_equally_often_and_every_token_drawn(tokenizer: Tokenizer) -> None:
    rows, seq_len = 4000, 40
    tokens = np.full((rows, seq_len), tokenizer.random_ids[0], dtype=np.int32)
    input_ids, chosen = mask_rows(tokens, first_slots(tokens), keys_of(rows), MaskRule(0.5, 0.0, 1.0), tokenizer)
    assert np.abs(chosen.sum(axis=0) - rows / 2).max() < 5 * math.sqrt(rows) / 2
    draws, share = int(chosen.sum()), 1 / len(tokenizer.random_ids)
    counts = np.bincount(input_ids[chosen], minlength=tokenizer.vocab_size)[tokenizer.random_ids]
    assert counts.sum() == draws
    assert np.abs(counts - draws * share).max() < 5 * math.sqrt(draws * share * (1 - share))


@pytest.mark.parametrize(("mask_share", "random_share"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_a_share_of_one_is_all_and_of_none_is_none(
    tokenizer: Tokenizer, mask_share: float, random_share: float
) -> None:
    tokens = np.full((50, 64), tokenizer.random_ids[0], dtype=np.int32)
    input_ids, chosen = mask_rows(
        tokens, first_slots(tokens), keys_of(50), MaskRule(0.5, mask_share, random_share), tokenizer
    )
    assert chosen.sum() == 50 * 32
    assert (input_ids == tokenizer.mask_id).sum() == (50 * 32 if mask_share else 0)
    changed = int((input_ids != tokens).sum())
    assert (changed > 0) == (mask_share + random_share > 0)


def test_masking_is_the_one_of_this_data_version() -> None:
    """Where this fails on purpose, raise DATA_VERSION: old runs must not resume with other masks."""
    vocabulary = np.arange(1000)
    ids: Any = SimpleNamespace(is_maskable=vocabulary >= 10, random_ids=vocabulary[10:].astype(np.int32), mask_id=4)
    tokens = ((np.arange(40 * 128, dtype=np.int64) * 7919) % 1000).astype(np.int32).reshape(40, 128)
    input_ids, chosen = mask_rows(tokens, first_slots(tokens), keys_of(40, 23), MaskRule(0.15), ids)
    digest = hashlib.sha256(input_ids.astype("<i4").tobytes() + chosen.tobytes()).hexdigest()
    assert digest == "94b0376024dfe76ebca2dabce3e8997fc7160a92649f5336d3c2915fbcd85732"
