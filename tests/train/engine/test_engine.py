"""Sums that the engine makes itself, in as many digits as they need. Runs of real ranks are in tests/integration."""

from __future__ import annotations

import torch

from maskloom.train.engine.engine import add_up, gradient_norm


def test_sums_of_half_precision_are_made_in_full() -> None:
    """256 and 300 times 0.5: in bf16, whose numbers lie 2 apart there, every 0.5 would be lost."""
    module = torch.nn.Linear(3, 2, bias=False).to(torch.bfloat16)
    sums: dict[torch.nn.Parameter, torch.Tensor] = {}
    for number in range(301):
        module.weight.grad = torch.full_like(module.weight, 0.5 if number else 256.0)
        add_up(module, sums, is_last=number == 300)
        assert (module.weight.grad is None) == (number < 300)
    assert module.weight.grad is not None
    assert module.weight.grad.tolist() == [[406.0] * 3] * 2
    assert not sums


def test_the_norm_of_a_large_gradient_is_right() -> None:
    """Four million equal squares: added one after the other in fp32, they would stop growing at 2^24 times one."""
    module = torch.nn.Linear(1 << 11, 1 << 11, bias=False)
    module.weight.grad = torch.full_like(module.weight, 8.0)
    torch.testing.assert_close(gradient_norm(module), torch.tensor(8.0 * (1 << 11)), rtol=1e-6, atol=0)
