"""Which parameters an optimizer treats how.

Weight decay acts on matrices and embeddings, not on biases and LayerNorm, as BERT was trained. A group's `rate` is its
learning rate relative to the schedule's.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from maskloom.config import Optimizer

Group = dict[str, Any]
"""One of torch's parameter groups: `params`, and the hyperparameters that they share."""


def decayed_and_plain(model: nn.Module, settings: Optimizer) -> list[Group]:
    """The parameters of a model in two groups, in the model's order: those with weight decay, those without."""
    parameters = list(model.parameters())
    return [
        {"params": [each for each in parameters if each.ndim >= 2], "weight_decay": settings.weight_decay, "rate": 1.0},
        {"params": [each for each in parameters if each.ndim < 2], "weight_decay": 0.0, "rate": 1.0},
    ]


def betas(settings: Optimizer) -> tuple[float, float]:
    """How fast the first and the second moment forget."""
    return settings.beta1, settings.beta2
