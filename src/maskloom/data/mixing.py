"""Which corpus a lane's next row comes from: a pure function of (weights, lane, row), without state or random draws.

Take two corpora with shares r and 1 - r. Of a lane's first i rows, floor(i r + phi) come from the first corpus. More corpora
are split off one by one, each with its share of the rest. The lanes' phases phi are spread evenly over [0, 1). Every split
orders them anew, so that the lanes of one step do not all choose the same corpus.

The mix is exact to within K - 1 rows a lane, for K corpora, after any number of rows. So any window of a lane's rows is exact
to within 2 (K - 1). With two corpora, all lanes together are exact to within one row. This is Hermite's identity:
floor(x) + floor(x + 1/V) + ... + floor(x + (V-1)/V) = floor(V x).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from maskloom.data.hashing import make_key, permutation

UNIT_BITS = 32  # shares are integers in units of 2^-32: floats may differ across machines
Int64s = NDArray[np.int64]


def corpus_of_rows(weights: Sequence[float], lanes: int, lane: int, first: int, count: int) -> Int64s:
    """The corpus of each of a lane's rows first, ..., first + count - 1, int64 [count]. Rows are counted from the step at which
    these weights begin."""
    if len(weights) == 1:
        return np.zeros(count, dtype=np.int64)
    before = rows_of_corpora(weights, lanes, lane, np.arange(first, first + count + 1, dtype=np.int64))
    chosen: Int64s = np.argmax(np.diff(before, axis=1), axis=0)
    return chosen


def rows_of_corpora(weights: Sequence[float], lanes: int, lane: int, rows: Int64s) -> Int64s:
    """How many of a lane's first rows come from each corpus.

    Args:
        rows: int64 [n]; numbers of first rows to ask for.

    Returns:
        int64 [corpora, n]; each column sums to its number of rows.
    """
    counts = np.zeros((len(weights), len(rows)), dtype=np.int64)
    # Scale by a power of two: it rounds nothing, and then no sum of weights overflows.
    largest = math.frexp(max(weights))[1]
    weights = [math.ldexp(weight, -largest) for weight in weights]
    left = rows  # of the corpora that are not split off yet
    for corpus in range(len(weights) - 1):
        rest = sum(weights[corpus:])
        share = round(weights[corpus] / rest * (1 << UNIT_BITS)) if rest else 0
        place = int(permutation(make_key("mixing", lanes, corpus), lanes)[lane])
        phase = (place << UNIT_BITS) // lanes
        counts[corpus] = (left * share + phase) >> UNIT_BITS  # below 2^63 while a lane has given fewer than 2^31 rows
        left = left - counts[corpus]
    counts[-1] = left
    return counts
