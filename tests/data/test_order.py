"""Which block a lane reads when: every block once an epoch, in an order that nothing but seed, corpus and epoch decide."""

from __future__ import annotations

import hashlib
import tracemalloc

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.data.hashing import hash64, permutation
from maskloom.data.order import block_at, default_lanes
from maskloom.data.plan import VERSIONS

seeds = st.integers(0, 2**31)


def test_sixteen_million_blocks_need_no_memory() -> None:
    blocks = 16_000_000
    numbers = [*range(50), *range(blocks - 50, blocks + 50)]
    block_at(0, "corpus", 0, blocks)
    tracemalloc.start()
    try:
        places = [block_at(0, "corpus", number, blocks) for number in numbers]
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 100_000  # far less than a bit a block
    assert [epoch for epoch, _ in places] == [0] * 100 + [1] * 50
    assert all(0 <= place < blocks for _, place in places)
    assert len({place for epoch, place in places if epoch == 0}) == 100


def block_order(seed: int, corpus: str, epoch: int, blocks: int) -> list[int]:
    """The places of the blocks of one epoch in the order in which they are read."""
    found = [block_at(seed, corpus, epoch * blocks + position, blocks) for position in range(blocks)]
    assert {number for number, _ in found} == {epoch}
    return [place for _, place in found]


@settings(max_examples=50, deadline=None)
@given(seeds, st.integers(0, 1000), st.integers(30, 200))
def test_block_order_is_a_bijection_for_every_epoch_seed_and_corpus(seed: int, epoch: int, blocks: int) -> None:
    order = block_order(seed, "corpus", epoch, blocks)
    assert sorted(order) == list(range(blocks))
    # Two independent orders of 30 blocks agree once in 30! cases.
    assert order != block_order(seed, "corpus", epoch + 1, blocks)
    assert order != block_order(seed + 1, "corpus", epoch, blocks)
    assert order != block_order(seed, "another", epoch, blocks)
    assert order == block_order(seed, "corpus", epoch, blocks)


def test_seed_and_epoch_do_not_add_up() -> None:
    assert block_order(0, "corpus", 1, 100) != block_order(1, "corpus", 0, 100)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 4096), min_size=1, max_size=3), st.integers(0, 5000))
def test_default_lanes_are_the_most_that_the_promise_allows(batches: list[int], blocks: int) -> None:
    def fits(lanes: int) -> bool:
        return lanes <= 64 and (lanes == 1 or lanes * 16 <= blocks) and all(rows % lanes == 0 for rows in batches)

    assert default_lanes(batches, blocks) == max(lanes for lanes in range(1, 65) if fits(lanes))


def test_the_order_is_the_one_of_its_version() -> None:
    digest = hashlib.sha256()
    for epoch in range(3):
        digest.update(np.asarray(block_order(7, "corpus", epoch, 1000), dtype="<i8").tobytes())
    digest.update(hash64(7, np.arange(1000, dtype=np.uint64)).astype("<u8").tobytes())
    digest.update(permutation(7, 1000).astype("<i8").tobytes())
    assert (VERSIONS["order"], digest.hexdigest()) == (
        2,
        "776c070dede2520ee2a6cf7275d5b072784b8f21959f9feaadc5a07465ceedbd",
    ), "raise VERSIONS['order'] where this is on purpose: runs that exist must not resume with another order"
