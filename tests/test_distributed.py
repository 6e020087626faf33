from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch.distributed import distributed_c10d

from maskloom.distributed import World, barrier, gather_objects, max_over_ranks, sum_over_ranks


def test_alone_the_collectives_change_nothing() -> None:
    values = torch.tensor([1.0, -2.0])
    assert torch.equal(sum_over_ranks(values.clone()), values)
    assert torch.equal(max_over_ranks(values.clone()), values)
    assert gather_objects({"a": 1}, World()) == [{"a": 1}]
    barrier()


@pytest.mark.parametrize("value", [(1, 2), {1: "a"}, [(1,)], {"a": (1,)}, float("nan"), {1, 2}, b"a"])
def test_what_json_would_change_is_not_sent(value: object) -> None:
    with pytest.raises(TypeError):
        gather_objects(value, World())


def _gather(rank: int, size: int, store: str, results: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    # A pickle from another rank would be run by whoever unpickles it.
    with mock.patch.object(distributed_c10d, "_unpickler", side_effect=AssertionError("unpickled")):
        results.put((rank, gather_objects([rank, "é" * 1000 * rank, None, {"a": [0.5]}], World(rank, size))))
    torch.distributed.destroy_process_group()


def test_every_rank_has_the_values_of_all_in_order_and_unpickles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [context.Process(target=_gather, args=(rank, 3, str(tmp_path / "store"), results)) for rank in range(3)]
    for rank in ranks:
        rank.start()
    found = dict(results.get(timeout=60) for _ in ranks)
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, 0, 0]
    expected = [[rank, "é" * 1000 * rank, None, {"a": [0.5]}] for rank in range(3)]
    assert found == {0: expected, 1: expected, 2: expected}
