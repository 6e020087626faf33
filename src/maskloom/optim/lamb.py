"""LAMB (You et al., 2019, arXiv:1904.00962, algorithm 2), also over parameters that ZeRO has flattened and spread.

    m, v = Adam's moments         u = m^ / (sqrt(v^) + eps) + weight_decay * w         w <- w - lr * |w| / |u| * u

|w| and |u| are norms of whole tensors of the model: `whole_tensors` takes them. The ratio is 1 if a norm is 0, and in groups with
`adapts` false: biases and LayerNorm, as in the authors' BERT.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from maskloom.config import Optimizer
from maskloom.optim.kind import FromDeepSpeed, Group, OptimizerKind, betas, decayed_and_plain
from maskloom.optim.whole_tensors import OverWholeTensors, squared_norms


class Lamb(OverWholeTensors):
    """LAMB.

    Args:
        params: groups with `weight_decay` and `adapts` (whether the trust ratio scales the group's updates).
        lr: learning rate; `betas` and `eps` are Adam's.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "adapts": True})

    def step_group(self, group: dict[str, Any], weights: list[torch.Tensor]) -> None:
        """Update the weights of a group, which all have gradients."""
        updates = self.adam_updates(group, weights, *self.moments(group, weights))
        if not group["adapts"]:
            torch._foreach_add_(weights, updates, alpha=-group["lr"])
            return
        (weights, updates), totals = self.pieces(weights, updates)
        ratios = _trust_ratios(totals(squared_norms(weights, updates)))
        for weight, update, ratio in zip(weights, updates, ratios, strict=True):
            weight.addcmul_(update, ratio, value=-group["lr"])


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
