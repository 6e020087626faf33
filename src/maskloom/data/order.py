"""Which block a lane reads when: pure functions of (seed, corpus, epoch), no state and no generator.

Every decision is a keyed 64-bit hash. A key is BLAKE2b over its parts, so that (seed 0, epoch 1) and (seed 1, epoch 0)
have nothing in common; the hash of a counter under a key is SplitMix64's output function (Steele, Lea & Flood, 2014),
vectorised. NumPy's `Generator` is not used: its streams may change between versions, and the order is a contract.

Lanes are V virtual readers over the endless sequence of blocks: lane v's i-th block is number q = v + i V, which is
position q % B of epoch q // B. Every lane always has a next block, however few there are, so that ranks never differ in
their number of batches.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

DATA_VERSION = 1
"""Raised whenever order, packing or masking give other rows for the same input: old runs then refuse to resume."""

MOST_DEFAULT_LANES = 64
BLOCKS_A_LANE = 16
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
UInt64s = NDArray[np.uint64]


def make_key(*parts: int | str) -> int:
    """A 64-bit key from a tuple of parts: unlike a sum, no two different tuples share one by construction."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def hash64(key: int | UInt64s, counter: UInt64s) -> UInt64s:
    """Hash of `counter` under `key`, uint64; the two broadcast."""
    keys: UInt64s = np.asarray(key, dtype=np.uint64)
    with np.errstate(over="ignore"):
        x = keys + (counter + np.uint64(1)) * GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: UInt64s = x ^ (x >> np.uint64(31))
    return mixed


def permutation(key: int, size: int) -> NDArray[np.int64]:
    """The numbers 0..size-1 in the order of their hashes under `key`, int64 [size]."""
    return np.argsort(hash64(key, np.arange(size, dtype=np.uint64)), kind="stable")


@functools.lru_cache(maxsize=2)
def block_order(seed: int, corpus: str, epoch: int, blocks: int) -> NDArray[np.int64]:
    """The blocks of one epoch in reading order, int64 [blocks]; `corpus` is the corpus's digest."""
    return permutation(make_key(seed, corpus, "order", epoch), blocks)


@dataclass(frozen=True)
class Cursor:
    """Where a lane stands.

    Attributes:
        number: q of the open block.
        reads: (sequence length, rows taken) for each sequence length used inside the open block, the current one last;
            empty before its first row.
    """

    number: int
    reads: tuple[tuple[int, int], ...] = ()

    def at(self, seq_len: int) -> Cursor:
        """The same place, about to read rows of `seq_len`."""
        if self.reads and self.reads[-1][0] == seq_len:
            return self
        reads = self.reads if self.reads and self.reads[-1][1] else self.reads[:-1]
        return replace(self, reads=(*reads, (seq_len, 0)))

    def after(self, rows: int) -> Cursor:
        """The place `rows` rows further inside the open block."""
        seq_len, taken = self.reads[-1]
        return replace(self, reads=(*self.reads[:-1], (seq_len, taken + rows)))

    def to_json(self) -> list[Any]:
        return [self.number, *([seq_len, taken] for seq_len, taken in self.reads)]

    @staticmethod
    def from_json(items: list[Any]) -> Cursor:
        return Cursor(int(items[0]), tuple((int(seq_len), int(taken)) for seq_len, taken in items[1:]))


def first_cursors(lanes: int) -> list[Cursor]:
    """Where each lane stands before the first step."""
    return [Cursor(lane) for lane in range(lanes)]


def default_lanes(global_batches: Iterable[int], blocks: int) -> int:
    """The largest divisor of every global batch (rows) that is at most 64 and at most a sixteenth of the blocks."""
    common = math.gcd(*global_batches)
    most = max(1, min(MOST_DEFAULT_LANES, blocks // BLOCKS_A_LANE))
    return next(lanes for lanes in range(most, 0, -1) if common % lanes == 0)
