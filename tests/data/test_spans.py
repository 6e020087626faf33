"""Spans have SpanBERT's lengths, exactly, and begin at every word equally often."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.data import spans
from maskloom.data.hashing import hash64
from maskloom.data.spans import length_shares, rest_shares, span_leads
from tests.data.statistics import chi_square_sigmas, sigmas


def test_spans_have_the_lengths_of_the_cut_geometric_distribution() -> None:
    words = 300_000
    leads = span_leads(np.arange(words) == 0, hash64(5, np.arange(words, dtype=np.uint64)), 0.2, 10)
    lengths = np.diff(np.unique(leads))[1:]  # the first is the rest of a span, and the last is cut
    weights = 0.2 * 0.8 ** np.arange(10)
    expected = weights / weights.sum()
    assert np.allclose(length_shares(0.2, 10), expected, rtol=1e-12)
    assert abs(chi_square_sigmas(np.bincount(lengths, minlength=11)[1:], len(lengths) * expected)) < 5
    assert (expected * np.arange(1, 11)).sum() == pytest.approx(3.8, abs=0.01)  # the mean that SpanBERT's authors give


def test_every_word_begins_a_span_equally_often() -> None:
    runs, words = 20_000, 15
    starts = np.tile(np.arange(words) == 0, runs)
    leads = span_leads(starts, hash64(6, np.arange(runs * words, dtype=np.uint64)), 0.2, 10).reshape(runs, words)
    begins = leads == np.arange(runs * words).reshape(runs, words)
    assert begins[:, 0].all()
    mean = (np.array(length_shares(0.2, 10)) * np.arange(1, 11)).sum()
    assert sigmas(begins[:, 1:].sum(axis=0), runs, 1 / mean) < 5
    first = np.where(begins[:, 1:].any(axis=1), begins[:, 1:].argmax(axis=1) + 1, 15)
    expected = runs * np.array(rest_shares(length_shares(0.2, 10)))
    assert abs(chi_square_sigmas(np.bincount(first, minlength=11)[1:11], expected)) < 5


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-9, 1), st.integers(1, 60))
def test_the_tables_of_lengths_are_exact_sums(p: float, most: int) -> None:
    shares = length_shares(p, most)
    longer = [math.fsum(shares[n:]) for n in range(most)]
    assert rest_shares(shares) == tuple(share / math.fsum(longer) for share in longer)
    limits = [math.fsum(shares[:n]) for n in range(1, most)]
    assert spans._thresholds(shares).tolist() == [int(spans.threshold(limit)) for limit in limits]
