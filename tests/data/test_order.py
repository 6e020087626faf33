from __future__ import annotations

import hashlib
import json
import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.data.order import Cursor, block_order, default_lanes, first_cursors, hash64, make_key, permutation

seeds = st.integers(0, 2**31)
parts = st.lists(st.integers(0, 3) | st.text("ab1", max_size=2), max_size=3)
reads = st.lists(st.tuples(st.sampled_from([16, 32, 64]), st.integers(1, 50)), max_size=4).map(tuple)


def test_the_counter_hash_is_splitmix64() -> None:
    """The first five outputs of the published generator at seed 1234567."""
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert hash64(1234567, np.arange(5, dtype=np.uint64)).tolist() == published


def test_every_bit_of_the_hash_is_set_half_of_the_time() -> None:
    count = 1 << 14
    hashes = hash64(make_key("a", 1), np.arange(count, dtype=np.uint64))
    sigma = math.sqrt(count) / 2
    for bit in range(64):
        assert abs(int(((hashes >> np.uint64(bit)) & np.uint64(1)).sum()) - count / 2) < 5 * sigma


@settings(max_examples=50, deadline=None)
@given(
    st.lists(seeds | st.text("ab1", max_size=3), max_size=4), st.lists(seeds | st.text("ab1", max_size=3), max_size=4)
)
def test_keys_are_equal_only_for_equal_parts(left: list[int | str], right: list[int | str]) -> None:
    assert (make_key(*left) == make_key(*right)) == (left == right)


def test_a_number_and_its_digits_are_other_keys() -> None:
    assert make_key(1) != make_key("1")
    assert make_key("ab") != make_key("a", "b")


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 300))
def test_a_permutation_is_a_bijection(key: int, size: int) -> None:
    assert sorted(permutation(key, size).tolist()) == list(range(size))


@settings(max_examples=50, deadline=None)
@given(seeds, st.integers(0, 1000), st.integers(30, 200))
def test_block_order_is_a_bijection_for_every_epoch_seed_and_corpus(seed: int, epoch: int, blocks: int) -> None:
    order = block_order(seed, "corpus", epoch, blocks).tolist()
    assert sorted(order) == list(range(blocks))
    # Two independent orders of 30 blocks agree once in 30! cases.
    assert order != block_order(seed, "corpus", epoch + 1, blocks).tolist()
    assert order != block_order(seed + 1, "corpus", epoch, blocks).tolist()
    assert order != block_order(seed, "another", epoch, blocks).tolist()
    assert order == block_order(seed, "corpus", epoch, blocks).tolist()


def test_seed_and_epoch_do_not_add_up() -> None:
    assert block_order(0, "corpus", 1, 100).tolist() != block_order(1, "corpus", 0, 100).tolist()


def test_every_block_comes_first_about_equally_often() -> None:
    epochs, blocks = 3000, 10
    firsts = np.bincount([block_order(0, "corpus", epoch, blocks)[0] for epoch in range(epochs)], minlength=blocks)
    sigma = math.sqrt(epochs * (1 / blocks) * (1 - 1 / blocks))
    assert np.abs(firsts - epochs / blocks).max() < 5 * sigma


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**9), reads)
def test_a_cursor_survives_json(number: int, taken: tuple[tuple[int, int], ...]) -> None:
    cursor = Cursor(number, taken)
    assert Cursor.from_json(json.loads(json.dumps(cursor.to_json()))) == cursor


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([16, 32, 64]), st.integers(0, 9)), max_size=8))
def test_a_cursor_counts_the_rows_of_each_stretch_and_keeps_no_empty_one(stretches: list[tuple[int, int]]) -> None:
    cursor = Cursor(5)
    for seq_len, rows in stretches:
        cursor = cursor.at(seq_len)
        assert cursor.reads[-1][0] == seq_len
        assert cursor.at(seq_len) == cursor
        cursor = cursor.after(rows)
    assert cursor.number == 5
    assert sum(taken for _, taken in cursor.reads) == sum(rows for _, rows in stretches)
    assert all(taken for _, taken in cursor.reads[:-1])


def test_lanes_begin_at_consecutive_blocks() -> None:
    assert first_cursors(4) == [Cursor(0), Cursor(1), Cursor(2), Cursor(3)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 4096), min_size=1, max_size=3), st.integers(0, 5000))
def test_default_lanes_are_the_most_that_the_promise_allows(batches: list[int], blocks: int) -> None:
    def fits(lanes: int) -> bool:
        return lanes <= 64 and (lanes == 1 or lanes * 16 <= blocks) and all(rows % lanes == 0 for rows in batches)

    assert default_lanes(batches, blocks) == max(lanes for lanes in range(1, 65) if fits(lanes))


def test_the_order_is_the_one_of_this_data_version() -> None:
    """Where this fails on purpose, raise DATA_VERSION: old runs must not resume with another order."""
    digest = hashlib.sha256()
    for epoch in range(3):
        digest.update(block_order(7, "corpus", epoch, 1000).astype("<i8").tobytes())
    assert digest.hexdigest() == "2777edad20c76e28eb9cc8bdbd8420ba1005177d636dffa89e2fa4e6fb8c3c0b"
