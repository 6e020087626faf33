"""Adam's moments, and sums over whole tensors of the model, also if ZeRO has flattened and spread the parameters.

Under ZeRO a rank holds one flat vector a group, which is cut out of the group's concatenated tensors wherever the ranks' borders
fall:

    tensors of the group    [ query.weight ][ key.weight ][      intermediate.weight      ][ output.weight ]
    vectors of 3 ranks      [        rank 0         ][         rank 1         ][         rank 2         ]

`place` says which piece of which tensor lies where in such a vector. A step squares and sums the pieces, and adds the sums over
ranks in one all-reduce. All else works element by element, wherever tensors begin. Vectors that were not placed are
whole tensors, as at ZeRO stage 0.

Squares are summed in float64. On a CPU torch's fp32 norm of an embedding of 31 million is off by 2e-3, and layouts sum in
different orders. No step waits for the device.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any

import torch

from maskloom.distributed import sum_over_ranks
from maskloom.optim.kind import Placing

Tensors = Sequence[torch.Tensor]
Totals = Callable[[torch.Tensor], torch.Tensor]
"""Sums over each piece, float64 [K, pieces] -> sums over the tensor that the piece is of, in the same shape."""


class OverWholeTensors(torch.optim.Optimizer, abc.ABC):
    """An optimizer with Adam's moments that takes sums over whole tensors: `step_group` is to be written."""

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)
        self._placings: dict[torch.Tensor, tuple[Placing, torch.Tensor]] = {}

    def place(self, placings: dict[torch.Tensor, Placing]) -> None:
        """Say what the flat vectors among the parameters hold; replaces what was said before."""
        self._placings = {
            vector: (placing, torch.tensor([part.tensor for part in placing.parts], device=vector.device).long())
            for vector, placing in placings.items()
        }

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update each weight that has a gradient. If ZeRO has spread the weights, all ranks call it together."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self.step_group(group, weights)

    @abc.abstractmethod
    def step_group(self, group: dict[str, Any], weights: list[torch.Tensor]) -> None:
        """Update the weights of a group, which all have gradients."""

    def moments(self, group: dict[str, Any], weights: Tensors) -> tuple[int, Tensors, Tensors]:
        """Bring Adam's moments forward; returns the number of the step, and the moments without the correction of their bias."""
        states = [self.state[weight] for weight in weights]
        for weight, state in zip(weights, states, strict=True):
            if not state:
                state |= {"step": 0, "exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
            state["step"] += 1
        beta1, beta2 = group["betas"]
        gradients = gradients_of(weights)
        means, squares = ([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq"))
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        return states[0]["step"], means, squares

    def adam_updates(
        self, group: dict[str, Any], weights: Tensors, step: int, means: Tensors, squares: Tensors
    ) -> list[torch.Tensor]:
        """m^ / (sqrt(v^) + eps) + weight_decay * w of each weight, from what `moments` gave."""
        beta1, beta2 = group["betas"]
        updates = roots(squares, (1 - beta2**step) ** 0.5)  # the only temporary of the parameters' size
        torch._foreach_add_(updates, group["eps"])
        torch._foreach_reciprocal_(updates)
        torch._foreach_mul_(updates, list(means))
        torch._foreach_div_(updates, 1 - beta1**step)
        if group["weight_decay"]:
            torch._foreach_add_(updates, list(weights), alpha=group["weight_decay"])
        return updates

    def pieces(self, weights: Tensors, *beside: Tensors) -> tuple[list[list[torch.Tensor]], Totals]:
        """The weights, and tensors of the same shapes, cut where the model's tensors end; and what adds sums over pieces up."""
        if weights[0] not in self._placings:
            return [list(tensors) for tensors in (weights, *beside)], lambda sums: sums
        assert len(weights) == 1, "a group that ZeRO has spread is one vector"
        placing, numbers = self._placings[weights[0]]
        slices = [slice(part.start, part.start + part.length) for part in placing.parts]

        def totals(sums: torch.Tensor) -> torch.Tensor:
            spread = torch.zeros(len(sums), placing.tensors, dtype=torch.float64, device=numbers.device)
            if slices:
                spread.index_copy_(1, numbers, sums)
            return sum_over_ranks(spread)[:, numbers]

        return [[tensors[0][part] for part in slices] for tensors in (weights, *beside)], totals


def roots(squares: Tensors, correction: float) -> list[torch.Tensor]:
    """sqrt(v^) of each second moment v: sqrt(v) / correction."""
    found = list(torch._foreach_sqrt(list(squares)))
    torch._foreach_div_(found, correction)
    return found


def gradients_of(weights: Tensors) -> list[torch.Tensor]:
    """The gradients of weights that have some."""
    return [weight.grad for weight in weights if weight.grad is not None]


def squared_norms(*lists: Tensors) -> torch.Tensor:
    """|t|^2 of each tensor of each list, float64 [lists, tensors]."""
    norms = [torch.stack(torch._foreach_norm(list(tensors), 2, torch.float64)) for tensors in lists if tensors]
    return torch.stack(norms).square() if norms else torch.zeros(len(lists), 0, dtype=torch.float64)
