"""StableAdamW: AdamW with update clipping (Wortsman et al., 2023, arXiv:2304.13013, algorithm 2), as ModernBERT has it.

    m, v = Adam's moments         rms = sqrt(mean(g^2 / max(v^, eps^2)))         lr' = lr / max(1, rms)
    w <- w - lr' * (m^ / (sqrt(v^) + eps) + weight_decay * w)

`rms` is about 1 as long as the second moment knows gradients of this size. If they grow all at once, it is above 1, and the
tensor takes a smaller step. The mean is over a whole tensor of the model: `whole_tensors` takes it. Clipping by the global norm
is not needed beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from maskloom.config import Optimizer
from maskloom.optim.kind import FromDeepSpeed, Group, OptimizerKind, Placing, betas
from maskloom.optim.whole_tensors import OverWholeTensors, Tensors, gradients_of, roots, squared_norms


class StableAdamW(OverWholeTensors):
    """AdamW that lowers the rate of a tensor if its gradients outgrow their second moment.

    Args:
        params: groups with `weight_decay`.
        lr: learning rate; `betas` and `eps` are Adam's.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-6
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self._lengths: dict[torch.Tensor, torch.Tensor] = {}  # on the device: a step must not wait for a copy to it

    def place(self, placings: dict[torch.Tensor, Placing]) -> None:
        """Say what the flat vectors among the parameters hold; replaces what was said before."""
        super().place(placings)
        self._lengths.clear()

    def step_group(self, group: dict[str, Any], weights: list[torch.Tensor]) -> None:
        """Update the weights of a group, which all have gradients."""
        step, means, squares = self.moments(group, weights)
        _, beta2 = group["betas"]
        shares = self._shares(weights, squares, (1 - beta2**step) ** 0.5, group["eps"])
        updates = self.adam_updates(group, weights, step, means, squares)
        (parts, updates), _ = self.pieces(weights, updates)
        for weight, update, share in zip(parts, updates, shares, strict=True):
            weight.addcmul_(update, share, value=-group["lr"])

    def _shares(self, weights: list[torch.Tensor], squares: Tensors, correction: float, eps: float) -> torch.Tensor:
        """1 / max(1, rms) of each piece's tensor, float32 [pieces]."""
        scaled = roots(squares, correction)  # this and the updates are the largest temporaries, one after the other
        torch._foreach_clamp_min_(scaled, eps)
        torch._foreach_reciprocal_(scaled)
        torch._foreach_mul_(scaled, gradients_of(weights))
        (parts, scaled), totals = self.pieces(weights, scaled)
        sums = squared_norms(scaled).to(weights[0].device)
        lengths = torch.tensor([[part.numel() for part in parts]], dtype=torch.float64).to(
            sums.device, non_blocking=True
        )
        total, elements = totals(torch.cat([sums, lengths]))
        rms: torch.Tensor = (total / elements).sqrt()
        return rms.clamp(min=1.0).reciprocal().float()


def build(groups: list[Group], settings: Optimizer, deepspeed: FromDeepSpeed) -> StableAdamW:
    """StableAdamW over these groups; under ZeRO its vectors have to be placed."""
    return StableAdamW(groups, lr=settings.lr, betas=betas(settings), eps=settings.eps)


STABLE_ADAMW = OptimizerKind(
    name="stable_adamw",
    build=build,
    state_bytes=8,
    title="StableAdamW",
    norms_whole_tensors=True,
)
