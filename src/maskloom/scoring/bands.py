"""How well a model does on words, or tokens, that are frequent, and on those that are rare.

A band is a range of ranks: the 100 most frequent, those to rank 1,000, to 10,000, and the others. Ranks follow from counts in a
text that the caller names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

LAST_RANKS = (100, 1_000, 10_000)
"""The last rank of each band but the open one."""
BANDS = len(LAST_RANKS) + 1


def band_of_ranks(ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    """The number of the band of each rank, from 0; ranks begin with 1."""
    return np.searchsorted(LAST_RANKS, ranks, "left").astype(np.int64)


def band_by_word(words: Iterable[str]) -> dict[str, int]:
    """Each word of a text -> number of its band. If two come as often, the alphabet decides."""
    counts = Counter(words)
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    bands = band_of_ranks(np.arange(1, len(ordered) + 1)).tolist()
    return dict(zip(ordered, bands, strict=True))


def band_by_token(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of the band of each token, int64 [vocabulary]. If two come as often, the lower id is first."""
    ranks = np.empty(len(counts), np.int64)
    ranks[np.argsort(-counts, kind="stable")] = np.arange(1, len(counts) + 1)
    return band_of_ranks(ranks)


def band_name(band: int) -> str:
    """`ranks 101 to 1,000`."""
    first = LAST_RANKS[band - 1] + 1 if band else 1
    return f"ranks {first:,} to {LAST_RANKS[band]:,}" if band < len(LAST_RANKS) else f"ranks from {first:,}"
