"""Dropout of hidden states, a function of the generator's seed alone.

On a CPU torch draws a random number an element, one after the other: a twentieth of a BERT's step. The fused form draws 64
random bits for four elements, and keeps a byte an element for the backward in place of a float.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.nn import functional as F

LEVELS = 1 << 16
"""The fused form rounds the probability to a multiple of 1 / LEVELS; what is kept is scaled by the rounded one."""


def reference(hidden: torch.Tensor, probability: float) -> torch.Tensor:
    """Set each element to 0 with `probability` and divide the others by 1 - `probability`; any shape and dtype."""
    return F.dropout(hidden, probability)


def fused(hidden: torch.Tensor, probability: float) -> torch.Tensor:
    """What `reference` gives in distribution, from other draws; on a GPU the same, whose own kernel is fused."""
    dropped = round(probability * LEVELS)
    if hidden.device.type != "cpu" or not 0 < dropped < LEVELS:
        return reference(hidden, probability)
    return cast(torch.Tensor, _Dropout.apply(hidden, dropped))  # type: ignore[no-untyped-call]


@torch.library.custom_op("maskloom::keep", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _keep(hidden: torch.Tensor, dropped: int) -> torch.Tensor:
    """bool, of the shape of `hidden`: False with probability dropped / LEVELS. An operator, so that compiled code calls it as
    it is: taken apart, its draws would be slower than torch's own."""
    size = hidden.numel()
    words = torch.empty(-(-size // 4), dtype=torch.int64).random_(-(2**63), None)
    return (words.view(torch.int16)[:size] >= dropped - LEVELS // 2).view(hidden.shape)


@_keep.register_fake
def _(hidden: torch.Tensor, dropped: int) -> torch.Tensor:
    return torch.empty(hidden.shape, dtype=torch.bool, device=hidden.device)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, dropped: int) -> torch.Tensor:
        kept = _keep(hidden, dropped)
        ctx.save_for_backward(kept)
        ctx.scale = LEVELS / (LEVELS - dropped)
        return torch.where(kept, hidden * ctx.scale, 0)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (kept,) = ctx.saved_tensors
        return torch.where(kept, gradients[0] * ctx.scale, 0), None
