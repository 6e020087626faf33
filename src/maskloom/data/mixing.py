"""Which corpus a lane's next row comes from: a pure function of (weights, lane, row), no state and no draw.

Two corpora with shares r and 1 - r: of a lane's first i rows, floor(i r + phi) are the first corpus's. More corpora are
taken off one after the other, each with its share of what is left. The lanes' phases phi are spread evenly over [0, 1),
in an order of their own at every split, so that the lanes of one step do not choose alike.

Bound: of K corpora, after any number of rows a lane has given at most K - 1 rows more or less of a corpus than its
share, so over any window of rows of a lane at most 2 (K - 1); with two corpora, all lanes together at most one row at any
moment, for floor(x) + floor(x + 1/V) + ... + floor(x + (V-1)/V) = floor(V x) (Hermite's identity).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from maskloom.data.hashing import make_key, permutation

UNIT_BITS = 32  # shares are integers in units of 2^-32: floats may differ across machines
Int64s = NDArray[np.int64]


def rows_of_corpora(weights: Sequence[float], lanes: int, lane: int, row: int) -> list[int]:
    """How many of a lane's first `row` rows come from each corpus."""
    return [int(count) for count in _split(weights, lanes, lane, np.asarray([row], dtype=np.int64))[:, 0]]


def corpus_of_rows(weights: Sequence[float], lanes: int, lane: int, first: int, count: int) -> Int64s:
    """The corpus of each of a lane's rows first, ..., first + count - 1 (counted since the weights hold), int64 [count]."""
    if len(weights) == 1:
        return np.zeros(count, dtype=np.int64)
    before = _split(weights, lanes, lane, np.arange(first, first + count + 1, dtype=np.int64))
    chosen: Int64s = np.argmax(np.diff(before, axis=1), axis=0)
    return chosen


def _split(weights: Sequence[float], lanes: int, lane: int, rows: Int64s) -> Int64s:
    """For each number of rows, how many of them come from each corpus, int64 [corpora, len(rows)]."""
    counts = np.zeros((len(weights), len(rows)), dtype=np.int64)
    # A power of two rounds nothing, and no sum overflows.
    largest = math.frexp(max(weights))[1]
    weights = [math.ldexp(weight, -largest) for weight in weights]
    left = rows
    for corpus in range(len(weights) - 1):
        rest = sum(weights[corpus:])
        share = round(weights[corpus] / rest * (1 << UNIT_BITS)) if rest else 0
        place = int(permutation(make_key("mixing", lanes, corpus), lanes)[lane])
        phase = (place << UNIT_BITS) // lanes
        counts[corpus] = (left * share + phase) >> UNIT_BITS  # below 2^63 while a lane has given fewer than 2^31 rows
        left = left - counts[corpus]
    counts[-1] = left
    return counts
