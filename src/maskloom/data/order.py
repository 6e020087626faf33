"""Which block a lane reads when: pure functions of (seed, corpus, epoch), without state.

Lanes are V virtual readers over the endless sequence of blocks. Lane v's i-th block is number q = v + i V. With B blocks, that
is position q % B of epoch q // B. Every lane always has a next block, however few there are, so all ranks have the same number
of batches. The order of an epoch is a keyed permutation of its blocks.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable

from maskloom.data.hashing import make_key, permuted

MOST_DEFAULT_LANES = 64
BLOCKS_A_LANE = 16


def block_at(seed: int, corpus: str, number: int, blocks: int) -> tuple[int, int]:
    """(epoch, place in the list of blocks) of block number q of a corpus; `corpus` is its digest."""
    epoch, position = divmod(number, blocks)
    return epoch, permuted(_order_key(seed, corpus, epoch), position, blocks)


@functools.lru_cache(maxsize=64)
def _order_key(seed: int, corpus: str, epoch: int) -> int:
    return make_key(seed, corpus, "order", epoch)


def default_lanes(global_batches: Iterable[int], blocks: int) -> int:
    """The largest divisor of every global batch (rows) that is at most 64 and at most a sixteenth of the blocks."""
    common = math.gcd(*global_batches)
    most = max(1, min(MOST_DEFAULT_LANES, blocks // BLOCKS_A_LANE))
    return next(lanes for lanes in range(most, 0, -1) if common % lanes == 0)
