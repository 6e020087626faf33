"""Keyed 64-bit hashes and permutations: every random decision about the data is made of them.

A key is BLAKE2b over its parts, so (seed 0, epoch 1) and (seed 1, epoch 0) have nothing in common. The hash of a counter under
a key is SplitMix64's output function (Steele, Lea & Flood, 2014), vectorised. We do not use NumPy's `Generator`: its streams
may change between versions, but our order is a contract.

A permutation is computed for one number at a time. It is a generalised Feistel network over a*b >= B with cycle walking (Black
& Rogaway, 2002, "Ciphers with arbitrary finite domains"). To sort by a hash would give as good an order. But at 16 million
blocks it would cost every process seconds and hundreds of MiB. This costs microseconds a block and no memory.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MASK64 = (1 << 64) - 1
HALF_ROUNDS = 20  # with 12, some orders of five or six blocks are measurably more likely than others; with 16, none
UInt64s = NDArray[np.uint64]
Word = TypeVar("Word", int, UInt64s)


def make_key(*parts: int | str) -> int:
    """A 64-bit key from a tuple of parts. Unlike with a sum of seeds, different tuples have different keys (but for chance)."""
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
    """The numbers 0..size-1 in the order of their hashes under `key`, int64 [size]. For small sizes that are needed whole."""
    return np.argsort(hash64(key, np.arange(size, dtype=np.uint64)), kind="stable")


def permuted(key: int, number: Word, size: int) -> Word:
    """Where a keyed permutation of 0..size-1 sends `number`: an int, or a uint64 array."""
    found: Any = _feistel(key, number, size)
    if isinstance(number, int):
        while found >= size:  # the network permutes a slightly larger set: apply it until the number is inside again
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
