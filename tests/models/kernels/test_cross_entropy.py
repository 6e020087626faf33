"""The fused cross-entropy is the reference, forward and backward."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.models.kernels import cross_entropy

ROUNDING = {torch.float32: 2**-20, torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""Of the gradients, relative to the largest: half the spacing of numbers, and some of fp32's for sums."""


def both(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, scale: float = 0.37
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(loss, hits, gradient of the logits) of the reference and of the fused form."""
    results = []
    for implementation in (cross_entropy.reference, cross_entropy.fused):
        leaf = logits.clone().requires_grad_()
        loss, hits = implementation(leaf.clone(), targets, weights)
        loss.backward(torch.tensor(scale))
        assert leaf.grad is not None
        results.append((loss.detach(), hits, leaf.grad))
    return results


@pytest.mark.parametrize("dtype", ROUNDING)
@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 9),
    vocabulary=st.integers(2, 40),
    size=st.sampled_from([0.1, 3.0, 30.0]),
    seed=st.integers(0, 2**16),
)
def test_fused_is_the_reference(dtype: torch.dtype, rows: int, vocabulary: int, size: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(rows, vocabulary, generator=generator) * size).to(dtype)
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    weights = torch.randint(2, (rows,), generator=generator).float()
    (loss, hits, gradient), (fused_loss, fused_hits, fused_gradient) = both(logits, targets, weights)
    torch.testing.assert_close(fused_loss, loss, atol=1e-5, rtol=1e-6)
    assert fused_hits == hits
    assert fused_gradient.dtype == dtype
    assert (fused_gradient.float() - gradient.float()).abs().max() <= 0.37 * ROUNDING[dtype] * 4


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    logits, targets, weights = torch.randn(10, 50), torch.randint(50, (10,)), torch.ones(10)
    whole = both(logits, targets, weights)[1]
    monkeypatch.setattr(cross_entropy, "CPU_BLOCK_BYTES", 3 * 50 * 4)  # three rows, three, three, one
    for one, other in zip(whole, both(logits, targets, weights)[1], strict=True):
        assert torch.equal(one, other)


def test_gradient_is_softmax_minus_one_at_the_target() -> None:
    logits = torch.tensor([[0.0, math.log(2.0), math.log(5.0)]])
    _, (loss, hits, gradient) = both(logits, torch.tensor([1]), torch.ones(1), scale=2.0)
    assert loss == pytest.approx(math.log(8 / 2))
    assert hits == 0
    torch.testing.assert_close(gradient, 2 * torch.tensor([[1 / 8, 2 / 8 - 1, 5 / 8]]))


def test_padding_of_minus_infinity_counts_for_nothing() -> None:
    torch.manual_seed(0)
    logits, targets, weights = torch.randn(5, 7), torch.randint(7, (5,)), torch.ones(5)
    padded = torch.nn.functional.pad(logits, (0, 3), value=-math.inf)
    for (loss, hits, gradient), (padded_loss, padded_hits, padded_gradient) in zip(
        both(logits, targets, weights), both(padded, targets, weights), strict=True
    ):
        torch.testing.assert_close(padded_loss, loss)
        assert padded_hits == hits
        torch.testing.assert_close(padded_gradient[:, :7], gradient)
        assert (padded_gradient[:, 7:] == 0).all()


def test_a_logit_that_is_not_finite_makes_the_loss_so() -> None:
    for value in (math.nan, math.inf):
        logits = torch.zeros(2, 4)
        logits[1, 2] = value
        loss, _ = cross_entropy.fused(logits, torch.tensor([0, 1]), torch.ones(2))
        assert not loss.isfinite()


def test_a_second_backward_is_refused() -> None:
    """Its memory holds the first one's gradient: torch notices."""
    loss, _ = cross_entropy.fused(torch.randn(2, 4, requires_grad=True).clone(), torch.tensor([0, 1]), torch.ones(2))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
