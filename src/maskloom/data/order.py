"""Which block a lane reads when: pure functions of (seed, corpus, epoch), no state and no generator.

Every decision is a keyed 64-bit hash. A key is BLAKE2b over its parts, so that (seed 0, epoch 1) and (seed 1, epoch 0)
have nothing in common; the hash of a counter under a key is SplitMix64's output function (Steele, Lea & Flood, 2014),
vectorised. NumPy's `Generator` is not used: its streams may change between versions, and the order is a contract.

An epoch's order is a keyed permutation, computed for one position at a time: a generalised Feistel network over a*b >= B
with cycle walking (Black & Rogaway, "Ciphers with arbitrary finite domains", 2002). Sorting the blocks by a hash gives as
good an order, but costs seconds and hundreds of MiB in every process at 16 million blocks; this costs microseconds a
block and no memory.

Lanes are V virtual readers over the endless sequence of blocks: lane v's i-th block is number q = v + i V, which is
position q % B of epoch q // B. Every lane always has a next block, however few there are, so that ranks never differ in
their number of batches.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from maskloom.scalars import is_count
from maskloom.tokenizer import TOKENIZING

VERSIONS = {"order": 2, "packing": 2, "masking": 2, "mixing": 1, "tokenizing": TOKENIZING}
"""One is raised whenever its part gives another result for the same input: runs that began with an older one are refused
with the reason. A tokenizer that can still give an older version's ids does so for a run that began with it
(`Tokenizer.as_of`). Golden digests in the tests hold this."""

MOST_DEFAULT_LANES = 64
BLOCKS_A_LANE = 16
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


def block_at(seed: int, corpus: str, number: int, blocks: int) -> tuple[int, int]:
    """(epoch, place in the list of blocks) of block number q of a corpus; `corpus` is its digest."""
    epoch, position = divmod(number, blocks)
    return epoch, permuted(_order_key(seed, corpus, epoch), position, blocks)


@functools.lru_cache(maxsize=64)
def _order_key(seed: int, corpus: str, epoch: int) -> int:
    return make_key(seed, corpus, "order", epoch)


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


class Cursor(NamedTuple):
    """Where a lane stands in one corpus.

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
        return Cursor(self.number, (*reads, (seq_len, 0)))

    def after(self, rows: int) -> Cursor:
        """The place `rows` rows further inside the open block."""
        seq_len, taken = self.reads[-1]
        return Cursor(self.number, (*self.reads[:-1], (seq_len, taken + rows)))

    def to_json(self) -> list[Any]:
        return [self.number, *([seq_len, taken] for seq_len, taken in self.reads)]

    @staticmethod
    def from_json(items: list[Any]) -> Cursor:
        """Raises TypeError, LookupError or ValueError where the items are not what `to_json` gives."""
        cursor = Cursor(items[0], tuple((seq_len, taken) for seq_len, taken in items[1:]))
        if not all(map(is_count, (cursor.number, *itertools.chain(*cursor.reads)))):
            raise ValueError(f"{items!r} is not a place in a corpus")
        return cursor


LaneCursors = tuple[Cursor, ...]
"""Where a lane stands in each corpus."""


def first_cursors(lanes: int, corpora: int = 1) -> list[LaneCursors]:
    """Where each lane stands before the first step."""
    return [(Cursor(lane),) * corpora for lane in range(lanes)]


def default_lanes(global_batches: Iterable[int], blocks: int) -> int:
    """The largest divisor of every global batch (rows) that is at most 64 and at most a sixteenth of the blocks."""
    common = math.gcd(*global_batches)
    most = max(1, min(MOST_DEFAULT_LANES, blocks // BLOCKS_A_LANE))
    return next(lanes for lanes in range(most, 0, -1) if common % lanes == 0)
