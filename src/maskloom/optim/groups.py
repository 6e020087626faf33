"""Which parameters an optimizer treats how, and the optimizers that need no DeepSpeed.

Groups: weight decay on matrices and embeddings, none on biases and LayerNorm, as BERT was trained. With Muon the matrices
of the encoder layers are a group of their own; embeddings, the tied decoder and the head's transform stay with AdamW
(Jordan et al., 2024). A group's `rate` is its learning rate relative to the schedule's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from maskloom.config import Muon, Optimizer
from maskloom.optim.lamb import Lamb

HIDDEN_LAYERS = ".encoder.layer."


def parameter_groups(model: nn.Module, settings: Optimizer) -> list[dict[str, Any]]:
    """The groups of a model's parameters, each parameter in one, with the hyperparameters that differ between them.

    Returns:
        torch's groups: `params`, `weight_decay`, `rate`; of LAMB `adapts`, of Muon `use_muon` and what the group takes.
    """
    matrices: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            plain.append(parameter)
        elif settings.name == "muon" and HIDDEN_LAYERS in name:
            matrices.append(parameter)
        else:
            decayed.append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": settings.weight_decay, "rate": 1.0},
        {"params": plain, "weight_decay": 0.0, "rate": 1.0},
    ]
    if settings.name == "lamb":
        groups[0]["adapts"], groups[1]["adapts"] = True, False
    if settings.name == "muon":
        for group in groups:
            group |= {"use_muon": False, "lr": settings.lr, "betas": betas(settings), "eps": settings.eps}
        muon = settings.muon or Muon()
        lr = muon.lr or settings.lr
        own = {"use_muon": True, "momentum": muon.momentum, "ns_method": muon.ns_method, "lr": lr}
        rate = lr / settings.lr
        groups.insert(0, {"params": matrices, "weight_decay": settings.weight_decay, "rate": rate, **own})
    return groups


def betas(settings: Optimizer) -> tuple[float, float]:
    return settings.beta1, settings.beta2


def adamw(model: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """torch's fused AdamW, which needs no operator built at start."""
    groups = parameter_groups(model, settings)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=betas(settings), eps=settings.eps, fused=True)


def lamb(model: nn.Module, settings: Optimizer) -> Lamb:
    """Our LAMB; under ZeRO its vectors have to be placed."""
    return Lamb(parameter_groups(model, settings), lr=settings.lr, betas=betas(settings), eps=settings.eps)
