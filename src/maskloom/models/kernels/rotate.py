"""Queries and keys turned by the angles of their slots (Su et al., 2021): elements i and i + D/2 of a head are a pair.

The arithmetic is in fp32 and rounded once. The reference is plain torch. The fused form turns queries and keys at once, in the
layout of the product's output. Its backward writes one gradient of queries, keys and values; torch would fill and add several.

Shapes: T slots, H heads, D head size.
"""

from __future__ import annotations

from typing import Any, cast

import torch

Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def reference(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Parts:
    """Turned queries, turned keys, and values.

    Args:
        qkv: [T, 3, H, D] of any dtype.
        cos, sin: fp32 [T, 1, D/2].

    Returns:
        Each [T, H, D] of the same dtype.
    """
    query, key, value = qkv.unbind(1)
    return _turned(query, cos, sin), _turned(key, cos, sin), value


def _turned(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = heads.float().chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(heads.dtype)


def fused(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Parts:
    """What `reference` gives."""
    return cast(Parts, _Rotate.apply(qkv, cos, sin))  # type: ignore[no-untyped-call]


def _turn(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, into: torch.Tensor, way: int) -> None:
    """Write heads [T, ..., H, D], turned forwards (way 1) or back (-1), into a tensor of their shape."""
    first, second = heads.float().chunk(2, -1)
    turned = into if into.dtype == torch.float32 else torch.empty(into.shape, dtype=torch.float32, device=into.device)
    torch.mul(heads, torch.cat((cos, cos), -1), out=turned)
    left, right = turned.chunk(2, -1)
    left.addcmul_(second, sin, value=-way)
    right.addcmul_(first, sin, value=way)
    if turned is not into:
        into.copy_(turned)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Any:
        ctx.save_for_backward(cos, sin)
        turned = torch.empty_like(qkv[:, :2], memory_format=torch.contiguous_format)
        _turn(qkv[:, :2], cos[:, None], sin[:, None], turned, 1)
        return turned[:, 0], turned[:, 1], qkv[:, 2]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        cos, sin = ctx.saved_tensors
        slots, heads, size = gradients[0].shape
        gradient = gradients[0].new_empty(slots, 3, heads, size)
        for number in (0, 1):
            _turn(gradients[number], cos, sin, gradient[:, number], -1)
        gradient[:, 2] = gradients[2]
        return gradient, None, None
