"""LAMB over whole tensors and over flat vectors that are pieces of them, without a process group."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.optim import whole_tensors as module
from maskloom.optim.kind import Placing, TensorPart
from maskloom.optim.lamb import Lamb

SHAPES = [(3, 5), (4,), (2, 2, 2)]


def weights_of(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in SHAPES]


def with_gradients(weights: list[torch.Tensor], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator)


def test_by_hand() -> None:
    """After one step m^ = g and v^ = g^2: u = sign(g) but for eps. |w| = 5 and |u| = sqrt(2) give the ratio."""
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    weight.grad = torch.tensor([0.5, -2.0])
    Lamb([{"params": [weight]}], lr=0.1, eps=0.0).step()
    ratio = 5 / 2**0.5
    torch.testing.assert_close(weight.detach(), torch.tensor([3 - 0.1 * ratio, 4 + 0.1 * ratio]))


def test_the_decay_is_part_of_the_update_that_the_ratio_scales() -> None:
    """Without a gradient u = decay * w, so that the ratio is 1 / decay and the step is lr * w, whatever the decay."""
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    weight.grad = torch.zeros(2)
    Lamb([{"params": [weight], "weight_decay": 0.01}], lr=0.1).step()
    torch.testing.assert_close(weight.detach(), torch.tensor([2.7, 3.6]))


@pytest.mark.parametrize(("weight", "gradient"), [([0.0, 0.0], [1.0, -1.0]), ([3.0, 4.0], [0.0, 0.0])])
def test_the_ratio_is_one_where_a_norm_is_zero(weight: list[float], gradient: list[float]) -> None:
    tensor = torch.tensor(weight, requires_grad=True)
    tensor.grad = torch.tensor(gradient)
    Lamb([{"params": [tensor]}], lr=0.1, eps=0.0 if any(gradient) else 1.0).step()
    torch.testing.assert_close(tensor.detach(), torch.tensor(weight) - 0.1 * torch.tensor(gradient))


def test_without_adapting_it_is_adam() -> None:
    ours, theirs = weights_of(1), weights_of(1)
    lamb = Lamb([{"params": ours, "adapts": False}], lr=0.1, betas=(0.8, 0.9))
    adam = torch.optim.Adam(theirs, lr=0.1, betas=(0.8, 0.9), eps=1e-6)
    for step in range(5):
        with_gradients(ours, step)
        with_gradients(theirs, step)
        lamb.step()
        adam.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 31), max_size=4), st.integers(0, 5))
def test_every_way_to_cut_gives_the_same_weights(cuts: list[int], padding: int) -> None:
    """The concatenated tensors and some padding, cut anywhere into one vector a rank; the sum over ranks is done by hand."""
    whole = weights_of(2)
    alone = Lamb([{"params": whole, "weight_decay": 0.1}], lr=0.05)
    length = sum(weight.numel() for weight in whole)
    borders = [0, *sorted(min(cut, length) for cut in cuts), length + padding]
    # The padding holds what no weight does: it may count nowhere.
    flat = torch.cat([*(weight.detach().flatten() for weight in whole), torch.full((padding,), 1e6)])
    ranks = []
    for begin, end in itertools.pairwise(borders):
        vector = flat[begin:end].clone().requires_grad_()
        optimizer = Lamb([{"params": [vector], "weight_decay": 0.1}], lr=0.05)
        optimizer.place({vector: placing_between(begin, end)})
        ranks.append((vector, optimizer, begin, end))
    for step in range(3):
        with_gradients(whole, step)
        gradient = torch.cat(
            [*(weight.grad.flatten() for weight in whole if weight.grad is not None), torch.ones(padding)]
        )
        for vector, _, begin, end in ranks:
            vector.grad = gradient[begin:end].clone()
        step_together([optimizer for _, optimizer, _, _ in ranks])
        alone.step()
    together = torch.cat([vector.detach() for vector, *_ in ranks])[:length]
    torch.testing.assert_close(together, torch.cat([weight.detach().flatten() for weight in whole]), rtol=0, atol=1e-6)


def placing_between(begin: int, end: int) -> Placing:
    """What a vector holds that reaches from element `begin` to `end` of the concatenated tensors."""
    pieces, first = [], 0
    for number, shape in enumerate(SHAPES):
        last = first + torch.Size(shape).numel()
        left, right = max(first, begin), min(last, end)
        if left < right:
            pieces.append(TensorPart(number, left - begin, right - left))
        first = last
    return Placing(len(SHAPES), tuple(pieces))


def step_together(optimizers: list[Lamb]) -> None:
    """A step of every rank: once to learn what each would add to the sum, then from the same state with the sum."""
    sums: list[torch.Tensor] = []
    states = [[(p, p.detach().clone(), dict(o.state[p])) for p in o.param_groups[0]["params"]] for o in optimizers]
    kept = [
        [{k: v.clone() if torch.is_tensor(v) else v for k, v in state.items()} for _, _, state in part]
        for part in states
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "sum_over_ranks", lambda mine: sums.append(mine.clone()) or mine)
        for optimizer in optimizers:
            optimizer.step()
        total = torch.stack(sums).sum(0)
        for optimizer, part, old in zip(optimizers, states, kept, strict=True):
            for (parameter, before, _), state in zip(part, old, strict=True):
                parameter.data.copy_(before)
                optimizer.state[parameter] = state
        patch.setattr(module, "sum_over_ranks", lambda mine: total)
        for optimizer in optimizers:
            optimizer.step()


def test_one_reduction_a_step_and_of_two_numbers_a_tensor() -> None:
    vector = torch.randn(27, requires_grad=True)
    vector.grad = torch.ones(27)
    plain = torch.randn(4, requires_grad=True)
    plain.grad = torch.ones(4)
    optimizer = Lamb([{"params": [vector]}, {"params": [plain], "adapts": False}], lr=0.1)
    optimizer.place({vector: placing_between(0, 27), plain: Placing(1, (TensorPart(0, 0, 4),))})
    shapes: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "sum_over_ranks", lambda mine: shapes.append(tuple(mine.shape)) or mine)
        optimizer.step()
    assert shapes == [(2, len(SHAPES))]


def test_norms_of_large_tensors_are_right() -> None:
    """Four million equal squares: summed in fp32 one after the other they stop growing at 2^24 times one."""
    weight = torch.full((1 << 22,), 8.0, requires_grad=True)
    weight.grad = torch.ones(1 << 22)
    Lamb([{"params": [weight]}], lr=1e-3, eps=0.0).step()
    torch.testing.assert_close(weight.detach(), torch.full_like(weight, 8.0 * (1 - 1e-3)), rtol=1e-7, atol=0)


def test_a_saved_state_resumes() -> None:
    ours, others = weights_of(3), weights_of(3)
    one = Lamb([{"params": ours}], lr=0.1)
    with_gradients(ours, 0)
    one.step()
    other = Lamb([{"params": others}], lr=0.7)
    other.load_state_dict(copy.deepcopy(one.state_dict()))  # loading alone would share the moments
    for mine, source in zip(others, ours, strict=True):
        mine.data.copy_(source.data)
    for weights, optimizer in ((ours, one), (others, other)):
        with_gradients(weights, 1)
        optimizer.step()
    for mine, source in zip(others, ours, strict=True):
        assert torch.equal(mine, source)
