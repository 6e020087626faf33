"""Dropout of hidden states, a function of the generator's seed alone.

torch draws a random number an element. On a CPU that is a twentieth of a BERT's step; compiled for a GPU, it makes the kernel
of dropout, residual and LayerNorm wait for its instructions and not for its bytes. Both fused forms draw less:

- on a CPU 64 random bits for four elements, 16 each;
- in compiled code for a GPU 64 random bits for eight elements, a byte each. A draw is ten rounds of Philox (Salmon et al.,
  2011), as costly as all the rest of an element. The bytes are plain torch, which Inductor fuses.

An eager step on a GPU keeps torch's own kernel, which draws for four elements at once.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.nn import functional as F

LEVELS = 1 << 16
"""The CPU's form rounds the probability to a multiple of 1 / LEVELS; what is kept is scaled by the rounded one."""
BYTE_LEVELS = 1 << 8
"""The same of the compiled form for a GPU: 0.1 becomes 26 / 256 = 0.1016."""


def reference(hidden: torch.Tensor, probability: float) -> torch.Tensor:
    """Set each element to 0 with `probability` and divide the others by 1 - `probability`; any shape and dtype."""
    return F.dropout(hidden, probability)


def fused(hidden: torch.Tensor, probability: float) -> torch.Tensor:
    """What `reference` gives in distribution, from other draws; on a GPU the same, whose own kernel is fused."""
    dropped = round(probability * LEVELS)
    if hidden.device.type != "cpu" or not 0 < dropped < LEVELS:
        return reference(hidden, probability)
    return cast(torch.Tensor, _Dropout.apply(hidden, dropped))  # type: ignore[no-untyped-call]


def compiled(hidden: torch.Tensor, probability: float) -> torch.Tensor:
    """What `reference` gives in distribution, for compiled code: on a CPU `fused`, elsewhere `by_bytes`."""
    return (fused if hidden.device.type == "cpu" else by_bytes)(hidden, probability)


def by_bytes(hidden: torch.Tensor, probability: float) -> torch.Tensor:
    """What `reference` gives in distribution, with `probability` rounded to a multiple of 1 / BYTE_LEVELS; on any device."""
    dropped = round(probability * BYTE_LEVELS)
    if not 0 < dropped < BYTE_LEVELS:  # 0, 1, and what would be rounded to them
        return reference(hidden, probability)
    size = hidden.numel()
    words = torch.randint(-(2**63), 2**63 - 1, (-(-size // 8),), dtype=torch.int64, device=hidden.device)
    kept = words.view(torch.uint8)[:size].view(hidden.shape) >= dropped
    return torch.where(kept, hidden * (BYTE_LEVELS / (BYTE_LEVELS - dropped)), 0)


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
