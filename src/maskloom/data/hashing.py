"""Keyed 64-bit hashes and permutations: what every random decision about the data is made of.

A key is BLAKE2b over its parts, so that (seed 0, epoch 1) and (seed 1, epoch 0) have nothing in common. The hash of a counter
under a key is SplitMix64's output function (Steele, Lea & Flood, 2014), vectorised. NumPy's `Generator` is not used: its
streams may change between versions, and the order is a contract.

A permutation is computed for one number at a time: a generalised Feistel network over a*b >= B with cycle walking (Black &
Rogaway, "Ciphers with arbitrary finite domains", 2002). Sorting by a hash gives as good an order, but costs seconds and
hundreds of MiB in every process at 16 million blocks; this costs microseconds a block and no memory.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MASK64 = (1 << 64) - 1
HALF_ROUNDS = 20  # with 12 the orders of five or six blocks are measurably uneven over keys, with 16 no longer
UInt64s = NDArray[np.uint64]
Word = TypeVar("Word", int, UInt64s)


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
    """The numbers 0..size-1 in the order of their hashes under `key`, int64 [size]: for what is small and needed whole."""
    return np.argsort(hash64(key, np.arange(size, dtype=np.uint64)), kind="stable")


def permuted(key: int, number: Word, size: int) -> Word:
    """Where a keyed permutation of 0..size-1 sends `number`: an int, or a uint64 array."""
    found: Any = _feistel(key, number, size)
    if isinstance(number, int):
        while found >= size:  # the network permutes a slightly larger set: walk on until back inside
            found = _feistel(key, found, size)
        return cast(Word, found)
    while (outside := found >= np.uint64(size)).any():
        found[outside] = _feistel(key, found[outside], size)
    return cast(Word, found)


def _feistel(key: int, number: Any, size: int) -> Any:
    """One pass of the network over the numbers below a*b, where a = ceil(sqrt(size)) and b = ceil(size / a)."""
    a = math.isqrt(size - 1) + 1
    b = -(-size // a)
    right, left = number // a, number % a
    for half_round in range(0, HALF_ROUNDS, 2):
        left = (left + _scramble(key, half_round, right) % a) % a
        right = (right + _scramble(key, half_round + 1, left) % b) % b
    return left + right * a


def _scramble(key: int, half_round: int, word: Any) -> Any:
    """SplitMix64 of a word under the key and the half round; Python's integers and uint64 arrays give the same."""
    x = (word * 0x9E3779B97F4A7C15 + ((key + half_round * 0xD1B54A32D192ED03) & MASK64)) & MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK64
    return x ^ (x >> 31)
