"""Which corpus a row comes from: closed form, bounded at every moment, the same from wherever it is asked."""

from __future__ import annotations

import hashlib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from maskloom.data.mixing import UNIT_BITS, corpus_of_rows, rows_of_corpora
from maskloom.data.plan import VERSIONS

weight = st.one_of(st.just(0.0), st.integers(1, 9).map(float), st.floats(1e-3, 1e3))
weights_of = st.lists(weight, min_size=1, max_size=5).filter(any).map(tuple)
ROWS = 400
lane_of = st.integers(1, 70).flatmap(lambda lanes: st.tuples(st.just(lanes), st.integers(0, lanes - 1)))


def shares_of(weights: tuple[float, ...]) -> np.ndarray:
    exact = [Fraction(weight) for weight in weights]
    return np.asarray([float(weight / sum(exact)) for weight in exact])


def counts_of(chosen: np.ndarray, corpora: int) -> np.ndarray:
    """How many of the first i rows each corpus gave, for every i: int64 [i, corpora]."""
    hits = chosen[:, None] == np.arange(corpora)
    return np.concatenate([np.zeros((1, corpora), np.int64), np.cumsum(hits, axis=0)])


def rounding(rows: int, corpora: int) -> float:
    """What shares in units of 2^-32 may be off by over `rows` rows: half a unit a split, and each rest by the ones before."""
    return (rows * corpora + 1) * 2.0**-UNIT_BITS


@settings(max_examples=60, deadline=None)
@given(weights_of, lane_of, st.integers(0, 10**6))
def test_counts_are_those_of_the_choices(weights: tuple[float, ...], lane: tuple[int, int], first: int) -> None:
    chosen = corpus_of_rows(weights, *lane, first, ROWS)
    assert (chosen.dtype, chosen.shape) == (np.int64, (ROWS,))
    assert ((chosen >= 0) & (chosen < len(weights))).all()
    before, after = rows_of_corpora(weights, *lane, np.asarray([first, first + ROWS])).T
    assert (np.bincount(chosen, minlength=len(weights)) == after - before).all()
    assert before.sum() == first


@settings(max_examples=100, deadline=None)
@given(weights_of, lane_of)
def test_a_lane_is_never_further_from_its_shares_than_the_bound(
    weights: tuple[float, ...], lane: tuple[int, int]
) -> None:
    """K - 1 rows at any moment, 2 (K - 1) over any window."""
    corpora = len(weights)
    counts = counts_of(corpus_of_rows(weights, *lane, 0, ROWS), corpora)
    off = counts - np.arange(ROWS + 1)[:, None] * shares_of(weights)
    most = corpora - 1 + rounding(ROWS, corpora)
    assert np.abs(off).max() <= most
    assert (off.max(axis=0) - off.min(axis=0)).max() <= 2 * most  # the worst window lies between these two moments


@settings(max_examples=100, deadline=None)
@given(weights_of, lane_of, st.integers(10**6, 10**9))
def test_the_bound_holds_after_any_number_of_rows(weights: tuple[float, ...], lane: tuple[int, int], rows: int) -> None:
    off = rows_of_corpora(weights, *lane, np.asarray([rows]))[:, 0] - rows * shares_of(weights)
    assert np.abs(off).max() <= len(weights) - 1 + rounding(rows, len(weights))


@settings(max_examples=60, deadline=None)
@given(st.tuples(weight, weight).filter(any), st.integers(1, 40))
def test_all_lanes_together_are_within_a_row_for_two_corpora(weights: tuple[float, float], lanes: int) -> None:
    counts = sum(counts_of(corpus_of_rows(weights, lanes, lane, 0, ROWS), 2) for lane in range(lanes))
    off = counts - lanes * np.arange(ROWS + 1)[:, None] * shares_of(weights)
    assert np.abs(off).max() <= 1 + lanes * rounding(ROWS, 2)


@settings(max_examples=60, deadline=None)
@given(weights_of, lane_of)
def test_a_weight_of_zero_is_never_chosen(weights: tuple[float, ...], lane: tuple[int, int]) -> None:
    assume(0.0 in weights)
    chosen = corpus_of_rows(weights, *lane, 0, ROWS)
    assert all(weights[corpus] > 0 for corpus in set(chosen.tolist()))


@settings(max_examples=60, deadline=None)
@given(weights_of, lane_of, st.integers(0, ROWS), st.integers(0, ROWS))
def test_a_start_anywhere_is_the_slice(weights: tuple[float, ...], lane: tuple[int, int], one: int, other: int) -> None:
    first, last = sorted((one, other))
    whole = corpus_of_rows(weights, *lane, 0, ROWS)
    assert corpus_of_rows(weights, *lane, first, last - first).tolist() == whole[first:last].tolist()


@settings(max_examples=60, deadline=None)
@given(weights_of, lane_of, st.integers(-20, 20))
def test_only_the_proportions_of_the_weights_count(
    weights: tuple[float, ...], lane: tuple[int, int], power: int
) -> None:
    """By powers of two, which floats multiply without rounding."""
    scaled = tuple(weight * 2.0**power for weight in weights)
    assert corpus_of_rows(scaled, *lane, 0, ROWS).tolist() == corpus_of_rows(weights, *lane, 0, ROWS).tolist()


@pytest.mark.parametrize("largest", [1.0, 1e308, 5e-324])
def test_no_weights_overflow(largest: float) -> None:
    for lane in range(4):
        chosen = corpus_of_rows((largest, largest, 0.0), 4, lane, 0, 10).tolist()
        assert chosen in ([0, 1] * 5, [1, 0] * 5)


def test_two_equal_corpora_take_turns() -> None:
    for lane in range(4):
        chosen = corpus_of_rows((1.0, 1.0), 4, lane, 0, 10).tolist()
        assert chosen in ([0, 1] * 5, [1, 0] * 5)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0), (1.0, 2.0, 5.0)])
def test_lanes_do_not_choose_alike(weights: tuple[float, ...]) -> None:
    """The lanes together have given floor(16 i r) rows of the first corpus after i each: each step gives its share to a
    row, where lanes that choose alike would give 0 or 16."""
    chosen = np.asarray([corpus_of_rows(weights, 16, lane, 0, 100) for lane in range(16)])
    assert np.abs((chosen == 0).sum(axis=0) - 16 * shares_of(weights)[0]).max() < 1 + 16 * rounding(100, len(weights))


def test_mixing_is_the_one_of_its_version() -> None:
    digest = hashlib.sha256()
    for weights in ((1.0, 2.0), (0.5, 0.0, 3.25), (7.0, 1.0, 0.1, 2.0)):
        for lane in range(6):
            digest.update(corpus_of_rows(weights, 6, lane, 1000 * lane, 500).astype("<i8").tobytes())
    assert (VERSIONS["mixing"], digest.hexdigest()) == (
        1,
        "4a5797807ce88ef6c6f91c5273519b74b1230c91f1069576d9bf23acfc935285",
    ), "raise VERSIONS['mixing'] where this is on purpose: runs that exist must not resume with other corpora"
