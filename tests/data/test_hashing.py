"""Keyed hashes and permutations: published values, bijections, no order more likely than another."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.data.hashing import hash64, make_key, permutation, permuted

seeds = st.integers(0, 2**31)
keys = st.integers(0, 2**64 - 1)


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


def test_neighbours_are_not_neighbours_afterwards() -> None:
    """The step from a block to the next, modulo their number, takes every value but 0 equally often."""
    size, draws = 1000, 40
    counts = np.zeros(size, dtype=np.int64)
    for key in range(draws):
        order = permuted(make_key(key), np.arange(size, dtype=np.uint64), size).astype(np.int64)
        counts += np.bincount((order[1:] - order[:-1]) % size, minlength=size)
    assert counts[0] == 0
    assert chi_square(counts[1:].tolist(), draws * (size - 1)) < most_chi_square(size - 1)
