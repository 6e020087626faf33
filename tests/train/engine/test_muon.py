"""Muon on a CPU: which rank has which matrices, and what DeepSpeed gets for one matrix."""

from __future__ import annotations

import itertools

import pytest
import torch

from maskloom.train.engine import muon as module
from maskloom.train.engine.muon import shared_updates, shares, update_of_one


def test_shares_hold_each_item_once_and_are_about_equal() -> None:
    costs = [1, 1, 1, 1, 3, 3, 4]
    parts = shares(costs, 2)
    assert sorted(itertools.chain(*parts)) == list(range(len(costs)))
    assert [sum(costs[number] for number in part) for part in parts] == [7, 7]
    assert shares([5], 3) == [[0], [], []]


def shapes_and_updates(sharers: int) -> list[tuple[torch.Size, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(shape, generator=generator) for shape in ((4, 4), (8, 4), (4, 6), (4, 4))]
    shapes = [gradient.shape for gradient in gradients]
    updates = shared_updates(gradients, [torch.zeros(shape) for shape in shapes], 0.9, "gram", sharers)
    return list(zip(shapes, updates, strict=True))


def test_matrices_that_are_shared_out_come_back_in_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three ranks, one after the other: what each sends is kept, and the last gets all."""
    sent: dict[int, torch.Tensor] = {}
    for rank in (0, 1, 2, 2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)

        def gather(tensor: torch.Tensor, ranks: int, rank: int = rank) -> torch.Tensor:
            sent[rank] = tensor
            return torch.stack([sent.get(number, tensor) for number in range(ranks)])

        monkeypatch.setattr(module, "gather_equal", gather)
        found = shapes_and_updates(3)
    for (shape, update), (_, alone) in zip(found, shapes_and_updates(1), strict=True):
        assert update.shape == alone.shape == shape
        torch.testing.assert_close(update, alone)


def test_a_gradient_that_is_not_finite_leaves_the_momentum() -> None:
    momentum = torch.ones(2, 3)
    update = update_of_one(torch.tensor([[1.0, torch.inf, 1.0], [1.0, 1.0, 1.0]]), momentum)
    assert not torch.isfinite(update).all()
    assert torch.equal(momentum, torch.ones(2, 3))


def test_an_update_has_the_type_of_its_gradient() -> None:
    momentum = torch.zeros(2, 3, dtype=torch.bfloat16)
    assert update_of_one(torch.randn(2, 3).bfloat16(), momentum).dtype == torch.bfloat16
    assert momentum.any()
