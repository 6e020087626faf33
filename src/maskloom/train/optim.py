"""Optimizers and their parameter groups."""

from __future__ import annotations

import torch
from torch import nn

from maskloom.config import Optimizer


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two groups: weight decay on matrices and embeddings, none on biases and LayerNorm, as BERT was trained."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        (decayed if parameter.ndim > 1 else plain).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def build_optimizer(model: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """torch's fused AdamW, which needs no operator built at start."""
    return torch.optim.AdamW(
        parameter_groups(model, settings.weight_decay),
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        fused=True,
    )
