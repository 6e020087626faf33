"""Dropout by 16 random bits an element: the rate, the scale, the backward, the seed."""

from __future__ import annotations

import math

import pytest
import torch

from maskloom.model.kernels import dropout


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_the_probability_says(probability: float) -> None:
    count = 200_001  # not a multiple of the four elements that share a draw
    torch.manual_seed(0)
    result = dropout.fused(torch.ones(count), probability)
    dropped = int((result == 0).sum())
    deviation = math.sqrt(count * probability * (1 - probability))
    assert abs(dropped - count * probability) < 5 * deviation
    rounded = round(probability * dropout.LEVELS) / dropout.LEVELS
    torch.testing.assert_close(result[result != 0], torch.full((count - dropped,), 1 / (1 - rounded)))


def test_each_of_four_that_share_a_draw_is_dropped_alike_and_by_itself() -> None:
    torch.manual_seed(0)
    kept = (dropout.fused(torch.ones(100_000, 4), 0.5) != 0).double()
    assert (kept.mean(0) - 0.5).abs().max() < 5 * math.sqrt(0.25 / 100_000)
    products = (kept[:, :, None] * kept[:, None, :]).mean(0)
    apart = ~torch.eye(4, dtype=torch.bool)
    assert (products[apart] - 0.25).abs().max() < 5 * math.sqrt(0.25 * 0.75 / 100_000)


@pytest.mark.parametrize("implementation", [dropout.reference, dropout.fused])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_passes_what_forward_passed(implementation: object, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    hidden = torch.randn(50, 7, dtype=dtype).requires_grad_()
    result = implementation(hidden, 0.3)  # type: ignore[operator]
    gradient = torch.randn(50, 7).to(dtype)
    result.backward(gradient)
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad * hidden.detach(), gradient * result.detach(), rtol=2**-6, atol=1e-6)
    assert result.dtype == hidden.grad.dtype == dtype


def test_the_seed_decides() -> None:
    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return dropout.fused(torch.ones(64), 0.5)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_nothing_and_everything(probability: float) -> None:
    assert torch.equal(dropout.fused(torch.ones(9), probability), torch.full((9,), 1 - probability))
