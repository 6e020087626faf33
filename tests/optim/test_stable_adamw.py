"""StableAdamW over whole tensors and over flat vectors that are pieces of them, without a process group."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.optim.stable_adamw import StableAdamW
from tests.optim.test_lamb import placing_between, step_together, weights_of, with_gradients


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_by_hand(scale: float) -> None:
    """The second gradient is ten times the first: v^ = (0.25 * 1 + 0.5 * 100) / 0.75 = 67, so that rms is sqrt(100 / 67).

    The unit of the gradients changes nothing.
    """
    weight = torch.tensor([1.0, 1.0], requires_grad=True)
    optimizer = StableAdamW([{"params": [weight], "weight_decay": 0.5}], lr=0.1, betas=(0.0, 0.5), eps=1e-9)
    weight.grad = torch.tensor([1.0, -1.0]) * scale
    optimizer.step()  # rms is 1: both move by lr, and decay by lr * decay
    torch.testing.assert_close(weight.detach(), torch.tensor([0.85, 1.05]))
    weight.grad = torch.tensor([10.0, -10.0]) * scale
    optimizer.step()
    rms = (100 / 67) ** 0.5
    signs = torch.tensor([1.0, -1.0])
    expected = torch.tensor([0.85, 1.05]) - 0.1 / rms * (signs * rms + 0.5 * torch.tensor([0.85, 1.05]))
    torch.testing.assert_close(weight.detach(), expected)


def test_gradients_that_shrink_leave_it_adamw() -> None:
    ours, theirs = weights_of(1), weights_of(1)
    stable = StableAdamW([{"params": ours, "weight_decay": 0.1}], lr=0.1, betas=(0.8, 0.9))
    adamw = torch.optim.AdamW(theirs, lr=0.1, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1)
    for step in range(5):
        for weights in (ours, theirs):
            with_gradients(weights, step)
            for weight in weights:
                weight.grad = weight.grad.sign() * 2.0**-step  # type: ignore[union-attr]
        stable.step()
        adamw.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 31), max_size=4), st.integers(0, 5))
def test_every_way_to_cut_gives_the_same_weights(cuts: list[int], padding: int) -> None:
    """The concatenated tensors and some padding, cut anywhere into one vector a rank; the sum over ranks is done by hand."""
    whole = weights_of(2)
    group = {"weight_decay": 0.1}
    alone = StableAdamW([{"params": whole, **group}], lr=0.05, betas=(0.9, 0.5))
    length = sum(weight.numel() for weight in whole)
    borders = [0, *sorted(min(cut, length) for cut in cuts), length + padding]
    flat = torch.cat([*(weight.detach().flatten() for weight in whole), torch.full((padding,), 1e6)])
    vectors = [flat[begin:end].clone().requires_grad_() for begin, end in itertools.pairwise(borders)]
    optimizers = [StableAdamW([{"params": [vector], **group}], lr=0.05, betas=(0.9, 0.5)) for vector in vectors]
    for vector, optimizer, (begin, end) in zip(vectors, optimizers, itertools.pairwise(borders), strict=True):
        optimizer.place({vector: placing_between(begin, end)})
    for step in range(3):
        with_gradients(whole, step)
        gradient = torch.cat([weight.grad.flatten() for weight in whole if weight.grad is not None])
        gradient = torch.cat([gradient, torch.full((padding,), 1e3)])
        for vector, (begin, end) in zip(vectors, itertools.pairwise(borders), strict=True):
            vector.grad = gradient[begin:end].clone()
        step_together(optimizers)
        alone.step()
    together = torch.cat([vector.detach() for vector in vectors])[:length]
    assert together == pytest.approx(torch.cat([weight.detach().flatten() for weight in whole]), rel=0, abs=1e-6)
