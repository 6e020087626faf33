"""Bands of ranks."""

from __future__ import annotations

import numpy as np

from maskloom.scoring.bands import BANDS, band_by_token, band_by_word, band_name, band_of_ranks


def test_the_edges_of_bands() -> None:
    ranks = np.array([1, 100, 101, 1000, 1001, 10_000, 10_001, 10**6])
    assert band_of_ranks(ranks).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [band_name(band) for band in range(BANDS)] == [
        "ranks 1 to 100",
        "ranks 101 to 1,000",
        "ranks 1,001 to 10,000",
        "ranks from 10,001",
    ]


def test_words_by_their_count() -> None:
    rare = [f"rare{number:04d}" for number in range(150)]
    bands = band_by_word([*rare, *(f"often{number}" for number in range(60) for _ in range(2))])
    assert {bands[f"often{number}"] for number in range(60)} == {0}
    assert [bands[word] for word in rare] == [0] * 40 + [1] * 110  # equally frequent: by the alphabet


def test_tokens_by_their_count() -> None:
    counts = np.zeros(300, np.int64)
    counts[200:] = 5
    assert band_by_token(counts).tolist() == [1] * 200 + [0] * 100
