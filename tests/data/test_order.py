from __future__ import annotations

import hashlib
import itertools
import json
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.data.cursors import Cursor, first_cursors
from maskloom.data.hashing import hash64, make_key, permutation, permuted
from maskloom.data.order import block_at, default_lanes
from maskloom.data.plan import VERSIONS

seeds = st.integers(0, 2**31)
parts = st.lists(st.integers(0, 3) | st.text("ab1", max_size=2), max_size=3)
keys = st.integers(0, 2**64 - 1)
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


@settings(max_examples=100, deadline=None)
@given(keys, st.integers(1, 400))
def test_the_keyed_permutation_is_a_bijection(key: int, size: int) -> None:
    assert sorted(permuted(key, np.arange(size, dtype=np.uint64), size).tolist()) == list(range(size))


@pytest.mark.parametrize("size", range(1, 40))
def test_no_small_size_is_left_out(size: int) -> None:
    """Squares, a number more and a number less: where the network's own set is as large, or almost a row larger."""
    for key in range(20):
        assert sorted(permuted(key, number, size) for number in range(size)) == list(range(size))


@settings(max_examples=60, deadline=None)
@given(keys, st.integers(1, 2**31), st.lists(st.integers(0, 2**31), min_size=1, max_size=20))
def test_numbers_and_arrays_are_permuted_alike(key: int, size: int, numbers: list[int]) -> None:
    numbers = [number % size for number in numbers]
    given_numbers = np.asarray(numbers, dtype=np.uint64)
    together = permuted(key, given_numbers, size)
    assert together.dtype == np.uint64
    assert together.tolist() == [permuted(key, number, size) for number in numbers]
    assert given_numbers.tolist() == numbers  # what was given is left as it was
    assert all(0 <= found < size for found in together.tolist())
    assert len(set(together.tolist())) == len(set(numbers))


def most_chi_square(cells: int) -> float:
    """What the sum of squares of `cells` cells stays below but for a chance of e^-20 (Laurent & Massart, 2000)."""
    freedom, exponent = cells - 1, 20.0
    return freedom + 2 * math.sqrt(freedom * exponent) + 2 * exponent


def chi_square(counts: list[int], draws: int) -> float:
    expected = draws / len(counts)
    return sum((count - expected) ** 2 for count in counts) / expected


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_every_order_of_a_few_blocks_is_equally_likely(size: int) -> None:
    draws, orders = 6000, math.factorial(size)
    seen = dict.fromkeys(itertools.permutations(range(size)), 0)
    for seed in range(draws):
        seen[tuple(permuted(make_key(seed, "order"), number, size) for number in range(size))] += 1
    assert chi_square(list(seen.values()), draws) < most_chi_square(orders)


@pytest.mark.parametrize("size", [10, 97, 100, 130])
@pytest.mark.parametrize("place", ["first", "last"])
def test_every_block_comes_first_and_last_equally_often(size: int, place: str) -> None:
    draws = 6000
    number = 0 if place == "first" else size - 1
    counts = np.bincount([permuted(make_key(seed), number, size) for seed in range(draws)], minlength=size)
    assert chi_square(counts.tolist(), draws) < most_chi_square(size)


def test_neighbours_are_no_neighbours_afterwards() -> None:
    """The step from a block to the next, modulo their number, takes every value but 0 equally often."""
    size, draws = 1000, 40
    counts = np.zeros(size, dtype=np.int64)
    for key in range(draws):
        order = permuted(make_key(key), np.arange(size, dtype=np.uint64), size).astype(np.int64)
        counts += np.bincount((order[1:] - order[:-1]) % size, minlength=size)
    assert counts[0] == 0
    assert chi_square(counts[1:].tolist(), draws * (size - 1)) < most_chi_square(size - 1)


def test_sixteen_million_blocks_need_no_memory() -> None:
    blocks = 16_000_000
    numbers = [*range(50), *range(blocks - 50, blocks + 50)]
    block_at(0, "corpus", 0, blocks)
    tracemalloc.start()
    try:
        places = [block_at(0, "corpus", number, blocks) for number in numbers]
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 100_000  # far less than a bit a block
    assert [epoch for epoch, _ in places] == [0] * 100 + [1] * 50
    assert all(0 <= place < blocks for _, place in places)
    assert len({place for epoch, place in places if epoch == 0}) == 100


def block_order(seed: int, corpus: str, epoch: int, blocks: int) -> list[int]:
    """The places of the blocks of one epoch in the order in which they are read."""
    found = [block_at(seed, corpus, epoch * blocks + position, blocks) for position in range(blocks)]
    assert {number for number, _ in found} == {epoch}
    return [place for _, place in found]


@settings(max_examples=50, deadline=None)
@given(seeds, st.integers(0, 1000), st.integers(30, 200))
def test_block_order_is_a_bijection_for_every_epoch_seed_and_corpus(seed: int, epoch: int, blocks: int) -> None:
    order = block_order(seed, "corpus", epoch, blocks)
    assert sorted(order) == list(range(blocks))
    # Two independent orders of 30 blocks agree once in 30! cases.
    assert order != block_order(seed, "corpus", epoch + 1, blocks)
    assert order != block_order(seed + 1, "corpus", epoch, blocks)
    assert order != block_order(seed, "another", epoch, blocks)
    assert order == block_order(seed, "corpus", epoch, blocks)


def test_seed_and_epoch_do_not_add_up() -> None:
    assert block_order(0, "corpus", 1, 100) != block_order(1, "corpus", 0, 100)


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


@pytest.mark.parametrize("corpora", [1, 3])
def test_lanes_begin_at_consecutive_blocks_of_each_corpus(corpora: int) -> None:
    assert first_cursors(4, corpora) == [(Cursor(lane),) * corpora for lane in range(4)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 4096), min_size=1, max_size=3), st.integers(0, 5000))
def test_default_lanes_are_the_most_that_the_promise_allows(batches: list[int], blocks: int) -> None:
    def fits(lanes: int) -> bool:
        return lanes <= 64 and (lanes == 1 or lanes * 16 <= blocks) and all(rows % lanes == 0 for rows in batches)

    assert default_lanes(batches, blocks) == max(lanes for lanes in range(1, 65) if fits(lanes))


def test_the_order_is_the_one_of_its_version() -> None:
    digest = hashlib.sha256()
    for epoch in range(3):
        digest.update(np.asarray(block_order(7, "corpus", epoch, 1000), dtype="<i8").tobytes())
    digest.update(hash64(7, np.arange(1000, dtype=np.uint64)).astype("<u8").tobytes())
    digest.update(permutation(7, 1000).astype("<i8").tobytes())
    assert (VERSIONS["order"], digest.hexdigest()) == (
        2,
        "776c070dede2520ee2a6cf7275d5b072784b8f21959f9feaadc5a07465ceedbd",
    ), "raise VERSIONS['order'] where this is on purpose: runs that exist must not resume with another order"
