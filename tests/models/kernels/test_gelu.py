"""GELU for compiled code: how far it is from the true values, over every number that bf16 has."""

from __future__ import annotations

import math

import pytest
import torch

from maskloom.models.kernels import KERNELS, gelu


def every_bf16(largest: float) -> torch.Tensor:
    """All bf16 numbers of at most that magnitude."""
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    return numbers[numbers.double().abs() <= largest]


def true_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.special.ndtr(x)


def half_unit(exact: torch.Tensor) -> torch.Tensor:
    """Half a unit in the last place of bf16, the largest error of rounding, of fp64 values."""
    return 2.0 ** (torch.floor(torch.log2(exact.abs().clamp(min=2**-126))) - 8)


def test_the_error_stays_below_half_of_what_bf16_rounds_away() -> None:
    """Beside what fp32 leaves of 1 + erf far below zero, 6e-8 of x, which torch's own form loses too."""
    numbers = every_bf16(1e4).double()
    exact = true_gelu(numbers)
    error = (gelu.approximate(numbers.float()).double() - exact).abs()
    allowed = half_unit(exact) + 6e-8 * numbers.abs().clamp(max=10)
    assert (error / allowed).max() < 0.45


def test_in_bf16_it_is_nearer_to_the_true_values_than_torchs() -> None:
    numbers = every_bf16(100)
    exact = true_gelu(numbers.double())
    wrong = [int((form(numbers) != exact.to(torch.bfloat16)).sum()) for form in (gelu.approximate, gelu.reference)]
    assert wrong[0] <= wrong[1]


def test_the_slope() -> None:
    numbers = every_bf16(1e4).float().requires_grad_()
    (slope,) = torch.autograd.grad(gelu.approximate(numbers).sum(), numbers)
    x = numbers.detach().double()
    exact = torch.special.ndtr(x) + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    assert (slope.double() - exact).abs().max() < 2.5e-4


@pytest.mark.parametrize("value", [0.0, -0.0, 1e4, -1e4, 1e10, -1e10, 3e38, -3e38, float("inf")])
def test_huge_values_are_numbers_with_numbers_as_slopes(value: float) -> None:
    number = torch.tensor(value, requires_grad=True)
    result = gelu.approximate(number)
    assert torch.equal(result.detach(), number.detach().clamp(min=0))
    if math.isfinite(value):
        (slope,) = torch.autograd.grad(result, number)
        assert float(slope) == (0.5 if value == 0 else float(value > 0))


def test_it_is_taken_in_bf16_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    monkeypatch.setattr(gelu, "approximate", lambda hidden: taken.append(f"{hidden.dtype} {hidden.device}"))
    for device in ("cpu", "meta"):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for kernels in KERNELS.values():
                kernels.gelu(torch.ones(4, device=device, dtype=dtype))
    assert taken == ["torch.bfloat16 meta"]


def test_compiled_it_is_what_it_is() -> None:
    hidden = torch.linspace(-6, 6, 512).to(torch.bfloat16).requires_grad_()
    outcomes = []
    for form in (gelu.approximate, torch.compile(gelu.approximate, fullgraph=True, dynamic=False)):
        result = form(hidden)
        outcomes.append((result.detach(), *torch.autograd.grad(result.sum(), hidden)))
    for one, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(other, one, rtol=2**-7, atol=1e-6)
