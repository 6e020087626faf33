"""Cross-entropy of the predicted tokens from their logits, the largest tensor of a step.

The reference keeps four of its size: the logits, their fp32 copy, the log-probabilities and the gradient. The fused form
works in the logits' own memory: they become exp(logit - largest), and in the backward, divided by their sum, the
gradient. It goes over them in blocks of rows that stay in a CPU's cache.

Shapes: K predicted tokens, V vocabulary, possibly padded with logits of -inf.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch.nn import functional as F

CPU_BLOCK_BYTES = 8 << 20
"""Of fp32 logits that are worked on at once on a CPU: read and written several times while they lie in its cache."""
GPU_BLOCK_BYTES = 1 << 30
"""Elsewhere few launches count more; bounds the fp32 copy of half-precision logits."""


def reference(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted sum of the cross-entropies, and hits.

    Args:
        logits: [K, V].
        targets: int64 [K], below V.
        weights: float32 [K]; 0 leaves a row out of both results.

    Returns:
        fp32 [] sum in nats; int64 [] number of rows of weight above 0 whose largest logit is the target's.
    """
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    hits = (logits.detach().argmax(-1) == targets) & (weights > 0)
    return (losses * weights).sum(), hits.sum()


def fused(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What `reference` gives. Overwrites `logits`: nothing else may read them afterwards."""
    return cast(tuple[torch.Tensor, torch.Tensor], _CrossEntropy.apply(logits, targets, weights))  # type: ignore[no-untyped-call]


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> Any:
        losses, sums, hits = [], [], []
        for block, target in zip(_blocks(logits, logits), _blocks(targets, logits), strict=True):
            largest, likeliest = block.max(-1)
            aimed = block.gather(-1, target[:, None]).squeeze(-1).float()
            # The difference is taken in fp32: rounded to bf16, one of 10 would be off by 4 % after the exponential.
            powers = block if block.dtype == torch.float32 else block.float()
            total = powers.sub_(largest[:, None]).exp_().sum(-1)
            if powers is not block:
                block.copy_(powers)
            losses.append(total.log() + largest.float() - aimed)
            sums.append(total)
            hits.append(likeliest == target)
        each = torch.cat(losses)
        ctx.save_for_backward(logits, targets, weights, torch.cat(sums), each)
        found = (torch.cat(hits) & (weights > 0)).sum()
        ctx.mark_non_differentiable(found)
        return (each * weights).sum(), found

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        logits, targets, weights, sums, losses = ctx.saved_tensors
        scale = weights * gradients[0]
        for block, factor in zip(_blocks(logits, logits), _blocks(scale / sums, logits), strict=True):
            block.mul_(factor[:, None])
        # p - 1 of the target, from its loss -log p: rounded once, as it is most of the gradient.
        logits.scatter_(-1, targets[:, None], (scale * torch.expm1(-losses)).to(logits.dtype)[:, None])
        return logits, None, None


def _blocks(tensor: torch.Tensor, logits: torch.Tensor) -> Sequence[torch.Tensor]:
    """`tensor` [K, ...] in the blocks of rows in which logits [K, V] are worked on."""
    size = CPU_BLOCK_BYTES if logits.device.type == "cpu" else GPU_BLOCK_BYTES
    return torch.split(tensor, max(1, size // (4 * logits.shape[-1])))
