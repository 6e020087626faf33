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
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import models
from tokenizers.implementations import BertWordPieceTokenizer

from maskloom.config import Masking
from maskloom.data import masking
from maskloom.data.hashing import hash64
from maskloom.data.masking import MaskRule, fill, mask_rows, rate_at
from maskloom.data.spans import length_shares, span_leads
from maskloom.errors import UserError
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.loading import tokenizer_of_definition
from maskloom.tokenizers.wordpiece import SPECIAL_TOKENS
from tests.data.statistics import chi_square_sigmas, sigmas

UNITS = ("token", "whole_word", "span")
shares = st.floats(0, 1)
seeds = st.integers(0, 2**32)


@pytest.fixture(scope="module")
def with_unused(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with 20 `[unused*]` tokens, as published vocabularies have them."""
    tree = json.loads(tokenizer.definition)
    first = len(tree["model"]["vocab"])
    tree["model"]["vocab"] |= {f"[unused{number}]": first + number for number in range(20)}
    return tokenizer_of_definition(json.dumps(tree), "with unused tokens")


@pytest.fixture(scope="module")
def cased() -> Tokenizer:
    """A cased vocabulary that keeps accents, with a few CJK characters."""
    tokens = [
        *SPECIAL_TOKENS,
        "na",
        "##ï",
        "##ve",
        "Ca",
        "##f",
        "##é",
        "é",
        "##tude",
        "中",
        "文",
        "字",
        "the",
        ".",
        "##s",
    ]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    built = BertWordPieceTokenizer(vocabulary, lowercase=False, strip_accents=False)
    return tokenizer_of_definition(built.to_str(), "the cased vocabulary")


def plain(size: int, continuations: int = 0) -> Any:
    """A vocabulary of `size` maskable ids from 10 on, of which the last `continuations` go on with a word; [MASK] is 4."""
    ids = np.arange(10 + size)
    is_continuation = ids >= 10 + size - continuations
    return SimpleNamespace(
        is_maskable=ids >= 10,
        is_continuation=is_continuation,
        starts_word=lambda tokens, starts: ~is_continuation[tokens],
        random_ids=ids[10:].astype(np.int32),
        mask_id=4,
    )


@st.composite
def rules(draw: st.DrawFn) -> MaskRule:
    mask_share = draw(shares)
    return MaskRule(
        draw(shares),
        mask_share,
        draw(shares) * (1 - mask_share),
        draw(st.sampled_from(UNITS)),
        draw(st.sampled_from(("exact", "bernoulli"))),
        draw(st.floats(0.05, 1)),
        draw(st.integers(1, 12)),
        draw(st.sampled_from(("token", "unit"))),
        tuple(draw(st.sets(st.integers(5, 200), max_size=40))),
    )


def random_rows(tokenizer: Tokenizer, rows: int, seq_len: int, seed: int) -> np.ndarray:
    """Any token anywhere, special ones and unused ones as well."""
    return np.random.default_rng(seed).integers(0, tokenizer.vocab_size, (rows, seq_len), dtype=np.int32)


def random_starts(rows: int, seq_len: int, seed: int) -> np.ndarray:
    starts = np.random.default_rng(seed + 1).random((rows, seq_len)) < 0.05
    starts[:, :1] = True
    return starts


def first_slots(tokens: np.ndarray) -> np.ndarray:
    """Rows of one piece each."""
    return random_starts(*tokens.shape, 0) & (np.arange(tokens.shape[1]) == 0)


def keys_of(rows: int, key: int = 1) -> np.ndarray:
    return hash64(key, np.arange(rows, dtype=np.uint64))


def mask(tokens: np.ndarray, rule: MaskRule, tokenizer: Any, key: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Rows of one piece, masked."""
    return mask_rows(tokens, first_slots(tokens), keys_of(len(tokens), key), rule, tokenizer)


def words_of(tokens: np.ndarray, starts: np.ndarray, is_maskable: np.ndarray, goes_on: np.ndarray) -> list[list[int]]:
    """The words of one row as lists of slots, token by token."""
    words: list[list[int]] = []
    for slot, token in enumerate(tokens):
        if not is_maskable[token]:
            continue
        if words and words[-1][-1] == slot - 1 and goes_on[token] and not starts[slot]:
            words[-1].append(slot)
        else:
            words.append([slot])
    return words


# What holds for every rule.


@settings(max_examples=150, deadline=None)
@given(rules(), st.integers(0, 12), st.integers(1, 80), seeds)
def test_what_is_masked_and_how_many(
    with_unused: Tokenizer, rule: MaskRule, rows: int, seq_len: int, seed: int
) -> None:
    tokens = random_rows(with_unused, rows, seq_len, seed)
    before = tokens.copy()
    input_ids, chosen = mask_rows(tokens, random_starts(rows, seq_len, seed), keys_of(rows, seed), rule, with_unused)
    assert np.array_equal(tokens, before)
    assert (input_ids.dtype, chosen.dtype) == (np.int32, np.bool_)
    assert input_ids.shape == chosen.shape == tokens.shape
    allowed = with_unused.is_maskable.copy()
    allowed[list(rule.protected)] = False
    assert not (chosen & ~allowed[tokens]).any()
    assert (input_ids == tokens)[~chosen].all()
    drawn = input_ids[chosen & (input_ids != tokens) & (input_ids != with_unused.mask_id)]
    assert allowed[drawn].all()
    counts = chosen.sum(axis=1)
    if rule.draw == "bernoulli":
        assert (counts <= rule.most(seq_len)).all()
        return
    budgets = np.array([math.floor(rule.rate * int(count) + 0.5) for count in allowed[tokens].sum(axis=1)])
    assert (counts <= budgets).all()
    assert rule.unit != "token" or (counts == budgets).all()


@settings(max_examples=60, deadline=None)
@given(rules(), st.integers(1, 12), seeds)
def test_a_rows_mask_depends_on_no_other_row(with_unused: Tokenizer, rule: MaskRule, rows: int, seed: int) -> None:
    tokens, starts, keys = random_rows(with_unused, rows, 40, seed), random_starts(rows, 40, seed), keys_of(rows, seed)
    together = mask_rows(tokens, starts, keys, rule, with_unused)
    for row in range(rows):
        one = slice(row, row + 1)
        alone = mask_rows(tokens[one], starts[one], keys[one], rule, with_unused)
        assert np.array_equal(alone[0], together[0][one])
        assert np.array_equal(alone[1], together[1][one])


@pytest.mark.parametrize("unit", UNITS)
def test_another_key_gives_another_mask(unit: Any) -> None:
    tokens = np.full((1, 128), 10, dtype=np.int32)
    # 128 slots choose 19; spans of mean 3.8 still leave more than 10^5 masks: 50 of them all differ but once in 100 cases.
    masks = {mask(tokens, MaskRule(0.15, unit=unit), plain(20), key)[1].tobytes() for key in range(50)}
    assert len(masks) == 50


@pytest.mark.parametrize("unit", UNITS)
def test_the_masks_of_two_rows_have_nothing_in_common(unit: Any) -> None:
    """Rows with the same text: the slots that two of them share are as many as chance gives."""
    rows, seq_len, rate = 4000, 128, 0.25
    chosen = mask(np.full((rows, seq_len), 10, dtype=np.int32), MaskRule(rate, unit=unit), plain(20))[1]
    shared = (chosen[0::2] & chosen[1::2]).sum(axis=1)
    expected = (chosen.mean(axis=0) ** 2).sum()  # independent rows: P(both) = P(one)^2 at each slot
    # The spread of the sum is taken from the sample itself: its law depends on the unit.
    assert abs(shared.mean() - expected) < 5 * shared.std() / math.sqrt(len(shared))
    assert shared.std() > 0


@pytest.mark.parametrize("draw", ["exact", "bernoulli"])
@pytest.mark.parametrize("unit", UNITS)
def test_rows_without_text_and_the_extremes_of_the_rate(with_unused: Tokenizer, unit: Any, draw: Any) -> None:
    tokens = np.full((3, 64), with_unused.pad_id, dtype=np.int32)
    tokens[1] = with_unused.unk_id
    tokens[2, 1:63] = random_rows(with_unused, 1, 62, 3)
    maskable = with_unused.is_maskable[tokens]
    for rate, expected in ((1.0, maskable), (1e-9, np.zeros_like(maskable))):
        input_ids, chosen = mask(tokens, MaskRule(rate, 1.0, 0.0, unit, draw), with_unused)
        assert np.array_equal(chosen, expected)
        assert np.array_equal(input_ids == with_unused.mask_id, expected | (tokens == with_unused.mask_id))
    input_ids, chosen = mask(tokens[:0], MaskRule(0.15, unit=unit, draw=draw), with_unused)
    assert input_ids.shape == chosen.shape == (0, 64)


# Words.


@settings(max_examples=100, deadline=None)
@given(st.floats(0.01, 1), st.integers(1, 8), st.integers(1, 80), st.integers(0, 30), seeds)
def test_words_are_whole_and_fill_the_budget(rate: float, rows: int, seq_len: int, parts: int, seed: int) -> None:
    """What is missing to k is less than the smallest word that is left; with no "##" in the vocabulary nothing is."""
    vocabulary = plain(30, parts)
    tokens = np.random.default_rng(seed).integers(8, 40, (rows, seq_len), dtype=np.int32)
    starts = random_starts(rows, seq_len, seed)
    rule = MaskRule(rate, unit="whole_word")
    chosen = mask_rows(tokens, starts, keys_of(rows, seed), rule, vocabulary)[1]
    for row in range(rows):
        words = words_of(tokens[row], starts[row], vocabulary.is_maskable, vocabulary.is_continuation)
        assert all(chosen[row, word].all() or not chosen[row, word].any() for word in words)
        missing = math.floor(rate * sum(map(len, words)) + 0.5) - int(chosen[row].sum())
        left = [len(word) for word in words if not chosen[row, word[0]]]
        assert 0 <= missing < min(left, default=1)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 6), st.integers(0, 30), seeds)
def test_filling_is_taking_one_after_the_other(rows: int, width: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    sizes = np.maximum(random.integers(-3, 9, (rows, width)), 0)
    budget = random.integers(0, 40, rows)
    expected = np.zeros((rows, width), dtype=bool)
    for row in range(rows):
        room = int(budget[row])
        for column, size in enumerate(sizes[row].tolist()):
            if 0 < size <= room:
                expected[row, column] = True
                room -= size
    assert np.array_equal(fill(sizes, budget), expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the naïve Café.", [[0], [1, 2, 3], [4, 5, 6], [7]]),
        ("中文字 the字", [[0], [1], [2], [3], [4]]),
        ("étude études", [[0, 1], [2, 3, 4]]),
    ],
)
@pytest.mark.parametrize("draw", ["exact", "bernoulli"])
def test_words_of_accented_and_chinese_text(cased: Tokenizer, draw: Any, text: str, expected: list[list[int]]) -> None:
    [ids] = cased.encode([text])
    assert words_seen(np.concatenate([[cased.cls_id], ids, [cased.sep_id]]), [0], cased, draw) == [
        [slot + 1 for slot in word] for word in expected
    ]


def test_a_word_ends_at_the_border_of_a_piece_and_at_what_cannot_be_masked() -> None:
    part, first, unknown, start, end = 29, 10, 1, 2, 3
    row = np.array([start, part, part, first, part, unknown, part, first, end, start, first, part, end, part])
    assert words_seen(row, [0, 9, 13], plain(20, 10)) == [[1, 2], [3, 4], [6], [7], [10, 11], [13]]
    # Without [CLS] between two pieces the border alone parts them.
    assert words_seen(np.array([first, part, part, part]), [0, 2], plain(20, 10)) == [[0, 1], [2, 3]]


def words_seen(row: np.ndarray, pieces: list[int], tokenizer: Any, draw: Any = "exact") -> list[list[int]]:
    """The groups of slots that were always masked together over 200 masks, in which half of the words are."""
    tokens = np.tile(row.astype(np.int32), (200, 1))
    starts = np.zeros(tokens.shape, dtype=bool)
    starts[:, pieces] = True
    chosen = mask_rows(tokens, starts, keys_of(200), MaskRule(0.5, unit="whole_word", draw=draw), tokenizer)[1]
    groups: dict[bytes, list[int]] = {}
    for slot in np.flatnonzero(chosen.any(axis=0)):
        groups.setdefault(chosen[:, slot].tobytes(), []).append(int(slot))
    return sorted(groups.values())


@pytest.mark.parametrize("rest", [0, 60])
def test_a_word_larger_than_the_budget_is_skipped(rest: int) -> None:
    tokens = np.full((300, 60 + rest), 10, dtype=np.int32)
    tokens[:, 1:60] = 29  # one word of 60 tokens, then words of one
    chosen = mask(tokens, MaskRule(0.15, unit="whole_word"), plain(20, 10))[1]
    assert not chosen[:, :60].any()
    assert (chosen.sum(axis=1) == (18 if rest else 0)).all()  # round(0.15 * 120)
    spans = mask(tokens, MaskRule(0.15, unit="span"), plain(20, 10))[1]
    assert np.array_equal(spans.sum(axis=1), chosen.sum(axis=1))
    assert not spans[:, :60].any()


# Spans.


@pytest.mark.parametrize(("p", "most"), [(0.2, 10), (1.0, 4), (0.5, 1)])
def test_chosen_spans_have_the_lengths_of_all_spans(p: float, most: int) -> None:
    """Under `bernoulli` a masked stretch is n spans with probability (1 - rate) * rate^(n - 1)."""
    rows, seq_len, rate = 64, 4096, 0.1
    rule = MaskRule(rate, unit="span", draw="bernoulli", span_p=p, span_max_words=most)
    chosen = mask(np.full((rows, seq_len), 10, dtype=np.int32), rule, plain(20))[1]
    edges = np.diff(np.pad(chosen.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    (_, ends), (_, begins) = np.nonzero(edges == -1), np.nonzero(edges == 1)
    inner = (begins > 0) & (ends < seq_len)
    lengths = np.minimum((ends - begins)[inner], 2 * most)
    one = np.concatenate([[0.0], length_shares(p, most)])
    law, times, stretch = np.zeros(40 * most), 1 - rate, np.array([1.0])
    for _ in range(30):  # of more than 30 spans once in 10^30
        stretch = np.convolve(stretch, one)
        law[: len(stretch)] += times * stretch[: len(law)]
        times *= rate
    expected = len(lengths) * np.append(law[1 : 2 * most], law[2 * most :].sum())
    seen = np.bincount(lengths, minlength=2 * most + 1)[1:]
    assert len(lengths) > 5000
    assert abs(chi_square_sigmas(seen, expected)) < 5


def test_all_but_one_of_a_rows_spans_are_whole_under_exact() -> None:
    """And the one that is not is cut at its end: `exact` takes its words in order until the budget is full."""
    rows, seq_len = 200, 128
    keys, slots = keys_of(rows), np.arange(seq_len, dtype=np.uint64)
    chosen = mask(np.full((rows, seq_len), 10, dtype=np.int32), MaskRule(0.15, unit="span"), plain(20))[1]
    assert (chosen.sum(axis=1) == 19).all()
    draws = hash64(keys[:, None], slots * masking.DRAWS + masking.LENGTH)
    leads = span_leads(np.tile(slots == 0, rows), draws.reshape(-1), 0.2, 10).reshape(rows, seq_len)
    cut = 0
    for row in range(rows):
        for lead in np.unique(leads[row]):
            inside = chosen[row, leads[row] == lead]
            assert (np.diff(inside.astype(int)) <= 0).all()
            cut += bool(inside.any() and not inside.all())
        assert cut <= row + 1
    assert cut > 0


@pytest.mark.parametrize("border", ["piece", "unmaskable"])
def test_no_span_reaches_across(border: str) -> None:
    """Neighbours in one run share their span more often than not; those on two sides of a border never do."""
    rows, rate = 20_000, 0.2
    tokens = np.full((rows, 24), 10, dtype=np.int32)
    starts = first_slots(tokens)
    left, right = 11, 12
    if border == "piece":
        starts[:, right] = True
    else:
        tokens[:, right] = 1
        right += 1
    rule = MaskRule(rate, unit="span", draw="bernoulli")
    chosen = mask_rows(tokens, starts, keys_of(rows), rule, plain(20))[1]
    assert sigmas((chosen[:, left] & chosen[:, right]).sum(), rows, rate**2) < 5
    # Two neighbours share a span unless the second begins one, which every word does with 1 / mean.
    apart = 1 / (np.array(length_shares(0.2, 10)) * np.arange(1, 11)).sum()
    assert sigmas((chosen[:, 5] & chosen[:, 6]).sum(), rows, rate * (1 - apart) + rate**2 * apart) < 5


# Rates and places.


@pytest.mark.parametrize("unit", ["token", "whole_word"])
def test_every_slot_is_chosen_equally_often(unit: Any) -> None:
    rows, seq_len, count = 4000, 40, 12
    chosen = mask(np.full((rows, seq_len), 10, dtype=np.int32), MaskRule(0.3, unit=unit), plain(20))[1]
    assert (chosen.sum(axis=1) == count).all()
    # Drawn without putting back: the variance of a slot's count is n p (1 - p), and all counts together are fixed.
    seen, share = chosen.sum(axis=0), count / seq_len
    statistic = ((seen - rows * share) ** 2).sum() / (rows * share * (1 - share)) * (seq_len - 1) / seq_len
    assert abs(statistic - (seq_len - 1)) < 5 * math.sqrt(2 * (seq_len - 1))


@pytest.mark.parametrize("unit", UNITS)
def test_bernoulli_chooses_every_slot_with_the_rate(unit: Any) -> None:
    rows, rate, words = 8000, 0.2, 128
    tokens = np.full((rows, words), 10, dtype=np.int32)
    tokens[:, 3::4] = 29  # of four tokens the last two are one word
    chosen = mask(tokens, MaskRule(rate, unit=unit, draw="bernoulli"), plain(20, 10))[1]
    assert sigmas(chosen.sum(axis=0), rows, rate) < 5
    counts = chosen.sum(axis=1)
    assert counts.min() < rate * words < counts.max() < MaskRule(rate, unit=unit, draw="bernoulli").most(words)
    if unit != "span":
        variance = rate * (1 - rate) * (128 if unit == "token" else 64 + 32 * 4)  # 64 words of one, 32 of two
        # A sample variance of n nearly normal numbers has the relative standard error sqrt(2 / n).
        assert counts.var() == pytest.approx(variance, rel=5 * math.sqrt(2 / rows))


@pytest.mark.parametrize("unit", UNITS)
def test_beyond_its_cap_a_row_keeps_the_smallest_keys(unit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = np.full((2000, 42), 10, dtype=np.int32)
    rule = MaskRule(0.25, unit=unit, draw="bernoulli")
    free = mask(tokens, rule, plain(20))[1]
    monkeypatch.setattr(masking, "CLIPPED_EXPONENT", 0.0)
    cap = rule.most(42)
    assert cap == 10  # the mean, 0.25 * 40
    capped = mask(tokens, rule, plain(20))[1]
    assert not (capped & ~free).any()
    assert np.array_equal(capped.sum(axis=1), np.minimum(free.sum(axis=1), cap))
    over = free.sum(axis=1) > cap
    assert 0 < over.sum() < 2000
    if unit == "token":  # the same keys decide under `exact`
        assert np.array_equal(capped[over], mask(tokens, MaskRule(cap / 42), plain(20))[1][over])


@pytest.mark.parametrize("rate", [0.001, 0.02, 0.15, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("seq_len", [8, 128, 512])
@pytest.mark.parametrize("unit", UNITS)
def test_a_row_reaches_its_cap_once_in_half_a_billion(unit: Any, seq_len: int, rate: float) -> None:
    """Exactly, for units of the size that the cap assumes: the tail of the binomial distribution of their number."""
    rule = MaskRule(rate, unit=unit, draw="bernoulli")
    span = (
        np.array(length_shares(0.2, 10)) @ np.arange(1, 11) ** 2 / (np.array(length_shares(0.2, 10)) @ np.arange(1, 11))
    )
    size = {"token": 1.0, "whole_word": 2.0, "span": 2.0 * span}[unit]
    trials = math.floor((seq_len - 2) / size)
    fits = math.floor(rule.most(seq_len) / size)
    tail = math.fsum(math.comb(trials, n) * rate**n * (1 - rate) ** (trials - n) for n in range(fits + 1, trials + 1))
    assert tail <= math.exp(-20)


@settings(max_examples=100, deadline=None)
@given(rules(), shares, st.integers(8, 600), st.integers(0, 600))
def test_the_cap_grows_with_the_rate_and_holds_for_shorter_rows(
    rule: MaskRule, rate: float, seq_len: int, fewer: int
) -> None:
    """So the capacity of a phase is that of its largest rate. Two slots of a row are [CLS] and [SEP]."""
    low, high = sorted([rule.rate, rate])
    assert rule.at_rate(low).most(seq_len) <= rule.at_rate(high).most(seq_len) <= seq_len - 2
    maskable = max(seq_len - 2 - fewer, 0)
    assert rule.draw == "bernoulli" or int(rule.count(np.asarray([maskable]))[0]) <= rule.most(seq_len)


# What becomes of the predicted tokens.


@pytest.mark.parametrize("unit", UNITS)
def test_eighty_ten_ten(unit: Any) -> None:
    rows, seq_len, vocabulary = 800, 128, plain(500, 100)
    tokens = np.random.default_rng(5).integers(10, 510, (rows, seq_len), dtype=np.int32)
    input_ids, chosen = mask(tokens, MaskRule(0.15, 0.8, 0.1, unit), vocabulary)
    count = int(chosen.sum())
    assert count > 15_000
    same_by_chance = 0.1 / 500  # a random token is the one that stood there
    masked, same = input_ids == 4, input_ids == tokens
    assert sigmas((masked & chosen).sum(), count, 0.8) < 5
    assert sigmas((same & chosen).sum(), count, 0.1 + same_by_chance) < 5
    assert sigmas((chosen & ~masked & ~same).sum(), count, 0.1 - same_by_chance) < 5


@pytest.mark.parametrize("unit", ["whole_word", "span"])
def test_a_unit_can_share_its_fate(unit: Any) -> None:
    rows, seq_len = 2000, 128
    tokens = np.full((rows, seq_len), 10, dtype=np.int32)
    tokens[:, 1::2] = 29  # words of two
    rule = MaskRule(0.05, 0.8, 0.1, unit, span_p=1.0, replace_unit="unit")  # spans of one word, which can be counted
    input_ids, chosen = mask(tokens, rule, plain(20, 10))
    pairs = chosen.reshape(-1, 2)
    assert (pairs[:, 0] == pairs[:, 1]).all()
    masked = (input_ids == 4).reshape(-1, 2)[pairs[:, 0]]
    assert (masked[:, 0] == masked[:, 1]).all()
    assert sigmas(masked[:, 0].sum(), len(masked), 0.8) < 5
    drawn = input_ids.reshape(-1, 2)[pairs[:, 0]][~masked[:, 0]]
    changed = drawn != [10, 29]
    # Each token of a random unit is drawn on its own: one of 20 is what stood there.
    assert sigmas(changed[:, 0].sum(), len(changed), 0.5 * 19 / 20) < 5
    assert sigmas((changed[:, 0] & changed[:, 1]).sum(), len(changed), 0.5 * (19 / 20) ** 2) < 5


def test_a_longer_span_shares_its_fate() -> None:
    tokens = np.full((400, 128), 10, dtype=np.int32)
    rule = MaskRule(1.0, 0.5, 0.0, "span", span_p=0.05, span_max_words=30, replace_unit="unit")
    chosen_mask = mask(tokens, rule, plain(20))[0] == 4
    changes = (chosen_mask[:, 1:] != chosen_mask[:, :-1]).sum()
    lengths = np.array(length_shares(0.05, 30)) * np.arange(1, 31)
    # A new span begins at a word with probability 1 / mean, and half of the spans differ from the one before.
    begins = np.arange(400 * 127).size / lengths.sum()
    assert abs(changes - begins / 2) < 5 * math.sqrt(begins)


def test_every_maskable_token_is_drawn_equally_often(tokenizer: Tokenizer) -> None:
    tokens = np.full((4000, 40), tokenizer.random_ids[0], dtype=np.int32)
    allowed = tokenizer.random_ids[3:]
    for rule in (MaskRule(0.5, 0.0, 1.0), MaskRule(0.5, 0.0, 1.0, protected=tuple(tokenizer.random_ids[1:3].tolist()))):
        ids = allowed if rule.protected else tokenizer.random_ids[1:]
        input_ids, chosen = mask(tokens, rule, tokenizer)
        counts = np.bincount(input_ids[chosen], minlength=tokenizer.vocab_size)
        counts = counts[np.concatenate([tokenizer.random_ids[:1], ids])]
        assert counts.sum() == chosen.sum() == 4000 * 20
        assert abs(chi_square_sigmas(counts, np.full(len(counts), 4000 * 20 / len(counts)))) < 5


@pytest.mark.parametrize(("mask_share", "random_share"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_a_share_of_one_is_all_and_of_none_is_none(mask_share: float, random_share: float) -> None:
    tokens = np.full((50, 64), 10, dtype=np.int32)
    input_ids, chosen = mask(tokens, MaskRule(0.5, mask_share, random_share), plain(500))
    assert chosen.sum() == 50 * 32
    assert (input_ids == 4).sum() == (50 * 32 if mask_share else 0)
    assert ((input_ids != tokens).sum() > 0) == (mask_share + random_share > 0)


# From the configuration.


def test_the_rule_of_a_configuration(cased: Tokenizer) -> None:
    settings_ = Masking(
        rate=0.3,
        mask_share=0.5,
        random_share=0.25,
        unit="span",
        draw="bernoulli",
        span_p=0.4,
        span_max_words=5,
        replace_unit="unit",
        protected=("字", "the", "字"),
    )
    ids = tuple(sorted(int(cased.encode([token])[0][0]) for token in ("字", "the")))
    rule = MaskRule.of(settings_, cased)
    assert rule == MaskRule(0.3, 0.5, 0.25, "span", "bernoulli", 0.4, 5, "unit", ids)
    assert MaskRule.of(Masking(), cased) == MaskRule(0.15)
    assert hash(rule.at_rate(0.1)) == hash(MaskRule(0.1, 0.5, 0.25, "span", "bernoulli", 0.4, 5, "unit", ids))


def test_protected_tokens_that_do_not_exist_are_named(cased: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"no 'tne' \(near: 'the'\); '猫'\. Give") as error:
        MaskRule.of(Masking(protected=("the", "tne", "猫")), cased)
    assert "masking.protected" in str(error.value)
    assert "the cased vocabulary" in str(error.value)


def test_protection_of_everything_is_refused(cased: Tokenizer) -> None:
    every = tuple(cased.token(number) for number in np.flatnonzero(cased.is_maskable))
    assert MaskRule.of(Masking(protected=every[1:]), cased).protected
    with pytest.raises(UserError, match=r"masking\.protected: no token is left in the vocabulary of the cased"):
        MaskRule.of(Masking(protected=every), cased)


@pytest.mark.parametrize("draw", ["exact", "bernoulli"])
def test_spans_without_end_are_as_long_as_a_row_can_tell(tokenizer: Tokenizer, draw: Any) -> None:
    """What is longer than the longest table is that table: it makes the same rows at no more work."""
    row = np.full((4, 64), tokenizer.random_ids[0], dtype=np.int32)
    starts, keys = np.zeros(row.shape, dtype=bool), hash64(7, np.arange(4, dtype=np.uint64))
    rules = [MaskRule(0.3, unit="span", draw=draw, span_max_words=most) for most in (4096, 10**12)]
    found = [mask_rows(row, starts, keys, rule, tokenizer) for rule in rules]
    assert np.array_equal(found[0][1], found[1][1])
    assert rules[0].most(64) == rules[1].most(64)
    assert MaskRule(0.3, span_max_words=10**12).longest_span(8192) == 8192


def test_the_rate_follows_the_step() -> None:
    constant, falling = Masking(rate=0.2), Masking(rate=0.3, final_rate=0.1)
    assert [rate_at(constant, None, step, 5) for step in range(5)] == [0.2] * 5
    assert [rate_at(falling, None, step, 5) for step in range(5)] == pytest.approx([0.3, 0.25, 0.2, 0.15, 0.1])
    assert [rate_at(falling, 0.4, step, 5) for step in range(5)] == [0.4] * 5
    assert rate_at(falling, None, 0, 1) == 0.3


@settings(max_examples=100, deadline=None)
@given(st.floats(0.01, 1), st.floats(0.01, 1), st.integers(2, 10**6), st.data())
def test_the_rate_is_monotone_to_the_last_bit(rate: float, final: float, total: int, data: st.DataObject) -> None:
    """The capacity of a phase is computed from its first and last step."""
    config = Masking(rate=rate, final_rate=final)
    steps = sorted(data.draw(st.lists(st.integers(0, total - 1), min_size=3, max_size=3)))
    rates = [rate_at(config, None, step, total) for step in steps]
    assert rates in (sorted(rates), sorted(rates, reverse=True))
    assert min(rate, final) * (1 - 1e-15) <= rates[0] <= max(rate, final) * (1 + 1e-15)


def test_masking_is_the_one_of_this_data_version() -> None:
    """Where this fails on purpose, raise the version of masking in order.py: old runs must not resume with other masks."""
    tokens = ((np.arange(40 * 128, dtype=np.int64) * 7919) % 1000).astype(np.int32).reshape(40, 128)
    starts = random_starts(40, 128, 0) & False | (np.arange(128) % 50 == 0)
    digest = hashlib.sha256()
    for unit in UNITS:
        for rule in (MaskRule(0.15, unit=unit), MaskRule(0.3, 0.6, 0.3, unit, "bernoulli", 0.3, 6, "unit", (20, 30))):
            input_ids, chosen = mask_rows(tokens, starts, keys_of(40, 23), rule, plain(990, 200))
            digest.update(input_ids.astype("<i4").tobytes() + chosen.tobytes())
    assert digest.hexdigest() == "3887bde78ce4efc564d1d230903a34a8a9589127e6ea1b01faee2a27a7f60055"


@pytest.mark.parametrize("unit", ["whole_word", "span"])
def test_words_of_a_tokenizer_that_does_not_mark_them_are_refused(unit: Any) -> None:
    made = HFTokenizer(models.BPE(vocab={token: n for n, token in enumerate([*SPECIAL_TOKENS, "a"])}, merges=[]))
    bytes_ = tokenizer_of_definition(made.to_str(), "my bytes")
    assert MaskRule.of(Masking(), bytes_) == MaskRule(0.15)
    for make in (MaskRule.of, lambda masking, ids: MaskRule.held_out(masking, 0.15, ids)):
        with pytest.raises(
            UserError,
            match=f"masking.unit {unit} needs a tokenizer whose tokens say.*my bytes is of kind other.*--import",
        ):
            make(Masking(unit=unit), bytes_)
