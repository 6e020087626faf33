"""Dropout by 16 or 8 random bits an element: the rate, the scale, the backward, the seed."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from maskloom.models.kernels import KERNELS, dropout

Dropout = Callable[[torch.Tensor, float], torch.Tensor]
FORMS = [(dropout.fused, dropout.LEVELS), (dropout.by_bytes, dropout.BYTE_LEVELS)]


@pytest.mark.parametrize(("form", "levels"), FORMS)
@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_the_probability_says(probability: float, form: Dropout, levels: int) -> None:
    count = 200_001  # not a multiple of the elements that share a draw
    rounded = round(probability * levels) / levels
    assert abs(rounded - probability) <= 1 / (2 * levels)
    torch.manual_seed(0)
    result = form(torch.ones(count), probability)
    dropped = int((result == 0).sum())
    assert abs(dropped - count * rounded) < 5 * math.sqrt(count * rounded * (1 - rounded))
    torch.testing.assert_close(result[result != 0], torch.full((count - dropped,), 1 / (1 - rounded)))


@pytest.mark.parametrize(("form", "sharing"), [(dropout.fused, 4), (dropout.by_bytes, 8)])
def test_each_of_those_that_share_a_draw_is_dropped_alike_and_by_itself(form: Dropout, sharing: int) -> None:
    """And so are neighbours of two draws."""
    torch.manual_seed(0)
    kept = (form(torch.ones(100_000, 2 * sharing), 0.5) != 0).double()
    assert (kept.mean(0) - 0.5).abs().max() < 5 * math.sqrt(0.25 / 100_000)
    products = (kept[:, :, None] * kept[:, None, :]).mean(0)
    apart = ~torch.eye(2 * sharing, dtype=torch.bool)
    assert (products[apart] - 0.25).abs().max() < 5 * math.sqrt(0.25 * 0.75 / 100_000)


@pytest.mark.parametrize("probability", [0.3, 0.5])
def test_every_byte_is_as_likely_as_another(probability: float) -> None:
    """What is dropped of eight at once follows the binomial distribution (chi-squared, 8 counts)."""
    rounds, rate = 100_000, round(probability * dropout.BYTE_LEVELS) / dropout.BYTE_LEVELS
    torch.manual_seed(1)
    dropped = (dropout.by_bytes(torch.ones(rounds, 8), probability) == 0).sum(1)
    expected = torch.tensor([math.comb(8, k) * rate**k * (1 - rate) ** (8 - k) * rounds for k in range(9)])
    found = torch.bincount(dropped, minlength=9)
    found[7] += found[8]  # the last two together: too few for the test
    expected[7] += expected[8]
    found, expected = found[:8].double(), expected[:8].double()
    assert ((found - expected) ** 2 / expected).sum() < 35  # 7 degrees of freedom: one in 90,000 is above


@pytest.mark.parametrize("implementation", [dropout.reference, dropout.fused, dropout.by_bytes])
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


def check_seeds(form: Dropout, device: str) -> None:
    """A seed gives the same masks each time, one after the other, and another one gives others."""

    def draw(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        return [form(torch.ones(16, 64, device=device), 0.5) for _ in range(2)]

    one, again, other = draw(1), draw(1), draw(2)
    assert torch.equal(one[0], again[0])
    assert torch.equal(one[1], again[1])
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one[0], other[0])


@pytest.mark.parametrize("form", [dropout.fused, dropout.by_bytes])
def test_the_seed_decides(form: Dropout) -> None:
    check_seeds(form, "cpu")


@pytest.mark.parametrize("form", [dropout.fused, dropout.by_bytes])
@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_nothing_and_everything(probability: float, form: Dropout) -> None:
    assert torch.equal(form(torch.ones(9), probability), torch.full((9,), 1 - probability))


def test_what_would_be_rounded_to_nothing_or_everything_is_torchs_own() -> None:
    torch.manual_seed(0)
    result = dropout.by_bytes(torch.ones(1_000_000), 0.001)
    assert 800 < int((result == 0).sum()) < 1200


def test_compiled_code_takes_bytes_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    monkeypatch.setattr(dropout, "by_bytes", lambda hidden, probability: taken.append(hidden.device.type))
    monkeypatch.setattr(dropout, "fused", lambda hidden, probability: taken.append("the CPU's"))
    for device in ("cpu", "meta"):
        KERNELS["compile"].dropout(torch.empty(8, device=device), 0.1)
    assert taken == ["the CPU's", "meta"]


def twice_checkpointed(hidden: torch.Tensor) -> torch.Tensor:
    for _ in range(2):
        hidden = checkpoint(dropout.by_bytes, hidden, 0.5, use_reentrant=False)
    return hidden


def check_compiled(device: str) -> None:
    """Inductor's draws: a seed's masks, and in the backward those of the forward, also when that is computed once more."""
    torch._dynamo.reset()
    check_seeds(torch.compile(dropout.by_bytes, fullgraph=True, dynamic=False), device)
    run = torch.compile(twice_checkpointed, fullgraph=True, dynamic=False)
    hidden = torch.ones(128, 64, device=device, requires_grad=True)
    result = run(hidden)
    (gradient,) = torch.autograd.grad(result.sum(), hidden)
    assert torch.equal(gradient, result.detach())
    assert abs(int((result == 4).sum()) - 2048) < 5 * math.sqrt(8192 * 0.25 * 0.75)


def test_compiled_bytes_follow_from_the_seed() -> None:
    check_compiled("cpu")


@pytest.mark.gpu
def test_compiled_bytes_follow_from_the_seed_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device: its random numbers are others")
    check_compiled("cuda")
