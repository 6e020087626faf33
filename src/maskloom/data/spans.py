"""Runs of words cut into spans, whose lengths follow SpanBERT's truncated geometric distribution (Joshi et al., 2020).

All of it is integers, and sums that are rounded once, so that every machine cuts alike.

SpanBERT draws a length and a start until its budget is full. Here the cut is one pass without rejection. Its spans never
overlap. Its first border is drawn so that every word of a run begins a span equally often (but the first, which always
does). SpanBERT shortens spans at the end of the text; here both ends of a run do, and an unknown token ends a run. Two
chosen neighbours look like one longer span, as SpanBERT's do. In both, the last span of a budget is cut; SpanBERT may cut
inside a word. Since spans never overlap, the stretches of masked words that a model meets are a little longer than
SpanBERT's. With 15 %, exact, they have 3.9 words on average at S = 128 (SpanBERT: 3.5), and 4.3 at S = 512 (SpanBERT: 3.9).

Shapes: U words (of all rows).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np

from maskloom.data.hashing import UInt64s
from maskloom.data.packing import Bools, Int64s

LAST = np.uint64(0xFFFFFFFFFFFFFFFF)
EXACT = 1 << 1074  # every float is an integer in units of its inverse


def span_leads(run_starts: Bools, draws: UInt64s, p: float, most: int) -> Int64s:
    """Cut runs of words into spans.

    Args:
        run_starts: bool [U]; True for the first word of every run.
        draws: uint64 [U]; the n-th of a run is for its n-th span.
        p: of the geometric distribution of a span's length in words.
        most: longest span.

    Returns:
        int64 [U]: number of the first word of each word's span.
    """
    words = np.arange(len(run_starts))
    begins = np.flatnonzero(run_starts)
    ends = np.append(begins, len(run_starts))[1:]
    shares = length_shares(p, most)
    lengths = 1 + np.searchsorted(_thresholds(shares), draws, side="right")
    # The first span of a run is the rest of one that began before it: P(rest = r) is proportional to P(length >= r).
    lengths[begins] = 1 + np.searchsorted(_thresholds(rest_shares(shares)), draws[begins], side="right")
    before = np.cumsum(lengths) - lengths
    place = before + np.repeat(begins - before[begins], ends - begins)
    leads = np.zeros(len(words), dtype=np.int64)
    inside = place[place < np.repeat(ends, ends - begins)]
    leads[inside] = inside
    return np.maximum.accumulate(leads)


@functools.lru_cache(maxsize=8)
def length_shares(p: float, most: int) -> tuple[float, ...]:
    """Probability of a span of 1, 2, ... `most` words: geometric, cut and renormalised."""
    weights = [p]
    for _ in range(most - 1):
        # A product, not a power, which differs between C libraries; nor `sum`, which differs between versions of Python.
        weights.append(weights[-1] * (1.0 - p))
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)


def rest_shares(shares: tuple[float, ...]) -> tuple[float, ...]:
    """Probability that 1, 2, ... words of a span are left at a word that is chosen at random."""
    longer = _sums(shares[::-1])[::-1]
    total = math.fsum(longer)
    return tuple(share / total for share in longer)


@functools.lru_cache(maxsize=16)
def _thresholds(shares: tuple[float, ...]) -> UInt64s:
    """Integers between which a uniform 64-bit draw falls with these probabilities, uint64 [len(shares) - 1]."""
    return np.asarray([threshold(total) for total in _sums(shares)[:-1]], dtype=np.uint64)


def _sums(values: Sequence[float]) -> list[float]:
    """The sum of the first 1, 2, ... values, each rounded once, as `math.fsum` does it."""
    ratios = (value.as_integer_ratio() for value in values)
    return [total / EXACT for total in itertools.accumulate(above * (EXACT // below) for above, below in ratios)]


def threshold(share: float) -> np.uint64:
    """The integer below which a uniform 64-bit draw falls with probability `share`: floats differ across machines."""
    return LAST if share >= 1.0 else np.uint64(int(share * 2.0**64))
