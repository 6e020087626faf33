"""Masked rows: cut, joined, counted and digested without loss."""

from __future__ import annotations

import hashlib
import itertools
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.data.index.corpus import Index
from maskloom.data.packing import pack
from maskloom.data.rows import FIELDS, RowRange, Rows, count_pairs, count_slots, count_text_tokens
from maskloom.tokenizers.base import Tokenizer

from .corpora import digest_of


def some_rows(count: int, seq_len: int, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 100, (2, count, seq_len), dtype=np.int32)
    flags = rng.random((2, count, seq_len)) < 0.2
    return Rows(ids[0], ids[1], flags[0], flags[1])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 12), st.lists(st.integers(0, 14), max_size=4).map(sorted))
def test_rows_are_cut_and_joined_without_loss(count: int, cuts: list[int]) -> None:
    rows = some_rows(count, 5)
    bounds = [0, *cuts, 99]
    parts = [rows.take(slice(first, last)) for first, last in itertools.pairwise(bounds)]
    joined = Rows.concatenate(parts)
    assert len(joined) == count == sum(map(len, parts))
    assert digest_of(joined) == digest_of(rows)
    gathered = Rows.gather([RowRange(rows, first, last) for first, last in itertools.pairwise(bounds)])
    assert digest_of(gathered) == digest_of(rows)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(6)))
def test_rows_are_taken_by_number(order: list[int]) -> None:
    rows = some_rows(6, 4)
    taken = rows.take(np.asarray(order))
    for name in FIELDS:
        assert np.array_equal(getattr(taken, name), [getattr(rows, name)[number] for number in order])


def test_no_rows_join_with_others() -> None:
    rows = some_rows(3, 7)
    none = Rows.none(7)
    assert len(none) == 0
    joined = Rows.concatenate([none, rows, none])
    assert digest_of(joined) == digest_of(rows)
    assert [getattr(joined, name).dtype for name in FIELDS] == [getattr(rows, name).dtype for name in FIELDS]


@pytest.mark.parametrize("name", FIELDS)
def test_every_value_is_in_the_digest(name: str) -> None:
    rows = some_rows(3, 4)
    seen = {digest_of(rows)}
    for place in range(12):
        values = getattr(rows, name).copy()
        values.reshape(-1)[place] ^= 1
        seen.add(digest_of(replace(rows, **{name: values})))
    assert len(seen) == 13


def test_the_digest_is_that_of_little_endian_bytes() -> None:
    rows = some_rows(2, 3)
    swapped = Rows(*(getattr(rows, name).astype(getattr(rows, name).dtype.newbyteorder(">")) for name in FIELDS))
    assert digest_of(swapped) == digest_of(rows)
    if sys.byteorder == "little":
        plain = b"".join(getattr(rows, name).tobytes() for name in FIELDS)
        assert digest_of(rows) == hashlib.sha256(plain).hexdigest()


def test_text_tokens_are_those_of_the_documents(index: Index, tokenizer: Tokenizer) -> None:
    documents = tokenizer.encode(index.documents(int(index.train_blocks[0]), "train"))
    packed = pack(documents, 32, 1, tokenizer)
    rows = Rows(packed.tokens, packed.tokens, packed.starts, np.zeros_like(packed.starts))
    assert count_text_tokens(rows, tokenizer) == len(documents.ids)


def test_slots_are_counted_by_piece(index: Index, tokenizer: Tokenizer) -> None:
    """Each row by hand: the pieces begin with [CLS], padding is none, and its squares are not counted."""
    packed = pack(tokenizer.encode(index.documents(int(index.train_blocks[0]), "train")), 32, 1, tokenizer)
    rows = Rows(packed.tokens, packed.tokens, packed.starts, np.zeros_like(packed.starts))
    lengths = []
    for row, starts in zip(rows.tokens, rows.starts, strict=True):
        begins = [*np.flatnonzero(starts), len(row)]
        lengths += [last - first for first, last in itertools.pairwise(begins) if row[first] == tokenizer.cls_id]
    slots, (squares,) = count_slots(rows, tokenizer)
    assert slots == sum(lengths) == np.count_nonzero(rows.tokens != tokenizer.pad_id) < rows.tokens.size
    assert squares == sum(length**2 for length in lengths)
    assert count_slots(Rows.none(32), tokenizer) == (0, [0])


@pytest.mark.parametrize("window", [None, 1, 3, 16, 100])
def test_pairs_are_those_that_a_window_lets_see_each_other(window: int | None) -> None:
    """By counting them one by one."""
    lengths = np.arange(1, 40)
    expected = [
        sum(window is None or abs(one - other) <= window for one in range(length) for other in range(length))
        for length in lengths
    ]
    assert count_pairs(lengths, window).tolist() == expected
