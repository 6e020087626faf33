from __future__ import annotations

import hashlib
import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.data.packing import ADDED, PackedRows, best_fit_decreasing, pack, pack_after
from maskloom.data.plan import VERSIONS
from maskloom.tokenizers.base import Tokenized

IDS: Any = SimpleNamespace(pad_id=0, cls_id=1, sep_id=2)  # all that packing asks of a tokenizer
FIRST = 10  # text tokens count from here, each one once, so that a lost or repeated one shows

lengths_of_documents = st.lists(st.integers(0, 150), max_size=12)
keys = st.integers(0, 2**64 - 1)


def documents_of(lengths: list[int]) -> Tokenized:
    return Tokenized(np.arange(FIRST, FIRST + sum(lengths), dtype=np.int32), np.asarray(lengths, dtype=np.int64))


def text_of(rows: np.ndarray) -> list[int]:
    return sorted(rows[rows >= FIRST].tolist())


def expected_text(lengths: list[int]) -> list[int]:
    return list(range(FIRST, FIRST + sum(lengths)))


@settings(max_examples=60, deadline=None)
@given(lengths_of_documents, st.integers(8, 70), keys)
def test_every_token_stands_in_one_row_once(lengths: list[int], seq_len: int, key: int) -> None:
    packed = pack(documents_of(lengths), seq_len, key, IDS)
    assert packed.tokens.shape == packed.starts.shape == (packed.count, seq_len)
    assert packed.tokens.dtype == np.int32
    assert text_of(packed.tokens) == expected_text(lengths)


@settings(max_examples=60, deadline=None)
@given(lengths_of_documents, st.integers(8, 70), keys)
def test_rows_are_pieces_between_cls_and_sep_then_padding(lengths: list[int], seq_len: int, key: int) -> None:
    documents = documents_of(lengths)
    owner = {int(token): number for number, document in enumerate(documents) for token in document}
    packed = pack(documents, seq_len, key, IDS)
    assert (np.diff(packed.begins) > 0).all()
    for number, (row, starts) in enumerate(zip(packed.tokens, packed.starts, strict=True)):
        inside = packed.begins // seq_len == number
        begins, sizes = packed.begins[inside] - number * seq_len, packed.lengths[inside]
        used = int(sizes.sum())
        assert 0 < used <= seq_len
        assert begins.tolist() == (np.cumsum(sizes) - sizes).tolist()  # one after the other, from the first slot on
        assert np.flatnonzero(starts).tolist() == [*begins.tolist(), *([used] if used < seq_len else [])]
        assert (row[used:] == IDS.pad_id).all()
        for begin, size in zip(begins, sizes, strict=True):
            piece = row[begin : begin + size]
            assert (piece[0], piece[-1]) == (IDS.cls_id, IDS.sep_id)
            text = piece[1:-1]
            assert len(text) >= 1
            assert (np.diff(text) == 1).all()  # consecutive tokens,
            assert len({owner[int(token)] for token in text}) == 1  # all of one document


@settings(max_examples=30, deadline=None)
@given(lengths_of_documents, st.integers(8, 70), keys)
def test_only_a_documents_last_piece_is_short(lengths: list[int], seq_len: int, key: int) -> None:
    packed = pack(documents_of(lengths), seq_len, key, IDS)
    assert len(packed.lengths) == sum(-(-length // (seq_len - ADDED)) for length in lengths)


@settings(max_examples=30, deadline=None)
@given(lengths_of_documents, st.integers(8, 70), keys)
def test_no_two_rows_are_half_empty(lengths: list[int], seq_len: int, key: int) -> None:
    packed = pack(documents_of(lengths), seq_len, key, IDS)
    used = np.bincount(packed.begins // seq_len, packed.lengths, packed.count)
    assert (2 * used <= seq_len).sum() <= 1


@settings(max_examples=60, deadline=None)
@given(
    lengths_of_documents,
    st.lists(st.tuples(st.sampled_from([8, 16, 33, 64]), st.integers(0, 12)), max_size=4),
    st.sampled_from([8, 40, 128]),
    keys,
)
def test_no_change_of_the_sequence_length_loses_or_repeats_a_token(
    lengths: list[int], phases: list[tuple[int, int]], last: int, key: int
) -> None:
    documents = documents_of(lengths)
    seen: list[np.ndarray] = []
    reads: list[tuple[int, int]] = []
    for seq_len, asked in phases:
        rows = pack_after(documents, [*reads, (seq_len, 0)], key, IDS).tokens
        taken = min(asked, len(rows))
        seen.append(rows[:taken].reshape(-1))
        reads.append((seq_len, taken))
    seen.append(pack_after(documents, [*reads, (last, 0)], key, IDS).tokens.reshape(-1))
    assert text_of(np.concatenate(seen)) == expected_text(lengths)


@settings(max_examples=20, deadline=None)
@given(lengths_of_documents, keys, st.integers(0, 5))
def test_the_rows_taken_at_the_last_length_change_nothing(lengths: list[int], key: int, taken: int) -> None:
    documents = documents_of(lengths)
    one, other = (pack_after(documents, [(16, 1), (32, count)], key, IDS) for count in (0, taken))
    assert np.array_equal(one.tokens, other.tokens)


@settings(max_examples=30, deadline=None)
@given(lengths_of_documents, st.integers(8, 40), keys)
def test_the_pieces_of_the_rest_are_the_rest(lengths: list[int], seq_len: int, key: int) -> None:
    packed = pack(documents_of(lengths), seq_len, key, IDS)
    for row in range(len(packed.tokens) + 1):
        pieces = packed.pieces_from(row)
        assert len(pieces) == (packed.begins >= row * seq_len).sum()
        assert pieces.ids.tolist() == [token for token in packed.tokens[row:].reshape(-1).tolist() if token >= FIRST]
        assert all((np.diff(piece) == 1).all() for piece in pieces)


def test_the_key_decides_the_order_of_rows() -> None:
    documents = documents_of([30] * 30)
    first, again, other = (pack(documents, 32, key, IDS).tokens for key in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert text_of(first) == text_of(other)


def test_every_order_of_rows_and_of_documents_is_equally_likely() -> None:
    """Three documents that fill a row each: their rows in one of six orders."""
    draws, documents = 3000, documents_of([14, 14, 14])
    seen = dict.fromkeys(itertools.permutations(range(3)), 0)
    for key in range(draws):
        seen[tuple((pack(documents, 16, key, IDS).tokens[:, 1] - FIRST) // 14)] += 1
    sigma = np.sqrt(draws * (1 / 6) * (5 / 6))
    assert max(abs(count - draws / 6) for count in seen.values()) < 5 * sigma


def test_one_document_that_fills_rows_alone_needs_no_choice() -> None:
    packed = pack(documents_of([14 * 5]), 16, 3, IDS)
    assert packed.lengths.tolist() == [16] * 5
    assert packed.begins.tolist() == [0, 16, 32, 48, 64]
    assert sorted(packed.tokens[:, 1].tolist()) == [FIRST + 14 * number for number in range(5)]


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_documents_without_a_token_give_no_row(lengths: list[int]) -> None:
    packed = pack(documents_of(lengths), 16, 1, IDS)
    assert packed.tokens.shape == packed.starts.shape == (0, 16)
    assert len(packed.pieces_from(0)) == 0
    assert pack_after(documents_of(lengths), [(16, 0), (32, 0)], 1, IDS).count == 0


def rooms_of(bins: np.ndarray, lengths: list[int], capacity: int) -> list[int]:
    """What is left in each bin."""
    return [
        capacity - sum(length for place, length in zip(bins, lengths, strict=True) if place == each)
        for each in range(max(bins, default=-1) + 1)
    ]


@settings(max_examples=100, deadline=None)
@given(st.integers(3, 200).flatmap(lambda room: st.tuples(st.just(room), st.lists(st.integers(1, room), max_size=80))))
def test_every_item_has_a_bin_and_at_most_one_is_half_empty(case: tuple[int, list[int]]) -> None:
    capacity, lengths = case[0], sorted(case[1], reverse=True)
    bins = best_fit_decreasing(np.asarray(lengths, dtype=np.int64), capacity)
    assert (bins.dtype, len(bins)) == (np.int64, len(lengths))
    rooms = rooms_of(bins, lengths, capacity)
    assert all(0 <= room < capacity for room in rooms)
    # An item that opens a bin fitted no other one: two half empty bins would have been one.
    assert sum(2 * room >= capacity for room in rooms) <= 1


@settings(max_examples=100, deadline=None)
@given(st.integers(3, 60).flatmap(lambda room: st.tuples(st.just(room), st.lists(st.integers(1, room), max_size=60))))
def test_each_item_goes_where_it_leaves_the_least_room(case: tuple[int, list[int]]) -> None:
    """The bit tricks find what looking at every bin finds."""
    capacity, lengths = case[0], sorted(case[1], reverse=True)
    rooms: list[int] = []
    for length in lengths:
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms[rooms.index(min(fitting))] -= length
        else:
            rooms.append(capacity - length)
    bins = best_fit_decreasing(np.asarray(lengths, dtype=np.int64), capacity)
    assert sorted(rooms_of(bins, lengths, capacity)) == sorted(rooms)


def test_packing_is_the_one_of_its_version() -> None:
    documents = documents_of([(number * 37) % 101 for number in range(50)])
    digest = hashlib.sha256()

    def update(packed: PackedRows) -> None:
        digest.update(packed.tokens.astype("<i4").tobytes() + packed.starts.tobytes())

    update(pack(documents, 32, 11, IDS))
    update(pack_after(documents, [(16, 20), (64, 3), (32, 0)], 11, IDS))
    assert (VERSIONS["packing"], digest.hexdigest()) == (
        2,
        "beb719396347534e33cde12a615ef2d37b4a555012b8e55f3acfbf8ef7bfbd24",
    ), "raise VERSIONS['packing'] where this is on purpose: runs that exist must not resume with other rows"
