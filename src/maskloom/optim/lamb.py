"""LAMB (You et al., 2019, arXiv:1904.00962, algorithm 2), also over parameters that ZeRO has flattened and spread.

    m, v = Adam's moments         u = m^ / (sqrt(v^) + eps) + weight_decay * w         w <- w - lr * |w| / |u| * u

|w| and |u| are norms of whole tensors of the model. Under ZeRO a rank holds one flat vector a group, which is cut out of
the group's concatenated tensors wherever the ranks' borders fall:

    tensors of the group    [ query.weight ][ key.weight ][      intermediate.weight      ][ output.weight ]
    vectors of 3 ranks      [        rank 0         ][         rank 1         ][         rank 2         ]

`place` says which piece of which tensor lies where in such a vector. A step then squares and sums the pieces, adds the sums
over ranks (two numbers a tensor, one all-reduce) and scales every piece by its tensor's ratio. Everything else is
elementwise and does not care where tensors begin. Vectors that were not placed are whole tensors, as at ZeRO stage 0.

The ratio is 1 where a norm is 0, and in groups with `adapts` false: biases and LayerNorm, as in the authors' BERT. Squares
are summed in float64: torch's fp32 norm of an embedding of 31 million is off by 2e-3 on a CPU, and the order of a sum differs
between layouts. No step waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from maskloom.config import Optimizer
from maskloom.distributed import sum_over_ranks
from maskloom.optim.kind import FromDeepSpeed, Group, OptimizerKind, Placing, betas, decayed_and_plain


class Lamb(torch.optim.Optimizer):
    """LAMB.

    Args:
        params: groups with `weight_decay` and `adapts` (whether the trust ratio scales the group's updates).
        lr: learning rate; `betas` and `eps` are Adam's.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "adapts": True})
        self._placings: dict[torch.Tensor, tuple[Placing, torch.Tensor]] = {}

    def place(self, placings: dict[torch.Tensor, Placing]) -> None:
        """Say what the flat vectors among the parameters hold; replaces what was said before."""
        self._placings = {
            vector: (placing, torch.tensor([part.tensor for part in placing.parts], device=vector.device).long())
            for vector, placing in placings.items()
        }

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; on all ranks together if parameters are spread over them."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._step_group(group, weights)

    def _step_group(self, group: dict[str, Any], weights: list[torch.Tensor]) -> None:
        updates = self._updates(group, weights)
        if not group["adapts"]:
            torch._foreach_add_(weights, updates, alpha=-group["lr"])
            return
        if weights[0] in self._placings:
            assert len(weights) == 1, "a group that ZeRO has spread is one vector"
            placing, numbers = self._placings[weights[0]]
            slices = [slice(part.start, part.start + part.length) for part in placing.parts]
            weights, updates = [weights[0][part] for part in slices], [updates[0][part] for part in slices]
            spread = torch.zeros(2, placing.tensors, dtype=torch.float64, device=numbers.device)
            if slices:
                spread.index_copy_(1, numbers, _squared_norms(weights, updates))
            ratios = _trust_ratios(sum_over_ranks(spread))[numbers]
        else:
            ratios = _trust_ratios(_squared_norms(weights, updates))
        for weight, update, ratio in zip(weights, updates, ratios, strict=True):
            weight.addcmul_(update, ratio, value=-group["lr"])

    def _updates(self, group: dict[str, Any], weights: list[torch.Tensor]) -> list[torch.Tensor]:
        """u of every parameter; brings the moments forward."""
        states = [self.state[weight] for weight in weights]
        for weight, state in zip(weights, states, strict=True):
            if not state:
                state |= {"step": 0, "exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
            state["step"] += 1
        step = states[0]["step"]
        beta1, beta2 = group["betas"]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        means, squares = ([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq"))
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        updates = torch._foreach_sqrt(squares)  # the only temporary of the parameters' size
        torch._foreach_div_(updates, (1 - beta2**step) ** 0.5)
        torch._foreach_add_(updates, group["eps"])
        torch._foreach_reciprocal_(updates)
        torch._foreach_mul_(updates, means)
        torch._foreach_div_(updates, 1 - beta1**step)
        if group["weight_decay"]:
            torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
        return list(updates)


def _squared_norms(weights: list[torch.Tensor], updates: list[torch.Tensor]) -> torch.Tensor:
    """|w|^2 and |u|^2 of each tensor, float64 [2, tensors]."""
    norms = [torch.stack(torch._foreach_norm(tensors, 2, torch.float64)) for tensors in (weights, updates)]
    return torch.stack(norms).square()


def _trust_ratios(squared_norms: torch.Tensor) -> torch.Tensor:
    """|w| / |u| of each tensor, float32 [tensors]; 1 where either is 0."""
    weight, update = squared_norms.sqrt()
    return torch.where((weight > 0) & (update > 0), weight / update, 1.0).float()


def groups(model: nn.Module, settings: Optimizer) -> list[Group]:
    """The trust ratio scales the updates of what decays, and of nothing else."""
    decayed, plain = decayed_and_plain(model, settings)
    return [{**decayed, "adapts": True}, {**plain, "adapts": False}]


def build(groups: list[Group], settings: Optimizer, deepspeed: FromDeepSpeed) -> Lamb:
    """LAMB over these groups; under ZeRO its vectors have to be placed."""
    return Lamb(groups, lr=settings.lr, betas=betas(settings), eps=settings.eps)


LAMB = OptimizerKind(name="lamb", groups=groups, build=build, state_bytes=8, title="LAMB", norms_whole_tensors=True)
