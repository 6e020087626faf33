"""Queries and keys turned by the angles of their slots (Su et al., 2021): elements i and i + D/2 of a head are a pair.

The arithmetic is in fp32 and rounded once. The reference is plain torch. The fused form turns queries and keys at once, in the
layout of the product's output. Its backward writes one gradient of queries, keys and values; torch would fill and add several.

Shapes: T slots, H heads, G heads of keys and of values, D head size. G is H, or less if several queries share a key.
"""

from __future__ import annotations

from typing import Any, cast

import torch

Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def reference(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, key_heads: int | None = None) -> Parts:
    """Turned queries, turned keys, and values.

    Args:
        qkv: [T, 3, H, D] of any dtype; with `key_heads` [T, H + 2 G, D].
        cos, sin: fp32 [T, 1, D/2].
        key_heads: G. Left out: H.

    Returns:
        Queries [T, H, D], keys and values [T, G, D], of the same dtype.
    """
    if key_heads is None:
        query, key, value = qkv.unbind(1)
    else:
        query, key, value = torch.split(qkv, [qkv.shape[1] - 2 * key_heads, key_heads, key_heads], 1)
    return _turned(query, cos, sin), _turned(key, cos, sin), value


def _turned(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = heads.float().chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(heads.dtype)


def fused(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, key_heads: int | None = None) -> Parts:
    """What `reference` gives."""
    return cast(Parts, _Rotate.apply(qkv, cos, sin, key_heads))  # type: ignore[no-untyped-call]


def _turn(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, into: torch.Tensor, way: int) -> None:
    """Write heads [T, H, D], turned forwards (way 1) or back (-1), into a tensor of their shape."""
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
    def forward(ctx: Any, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, key_heads: int | None) -> Any:
        ctx.save_for_backward(cos, sin)
        ctx.shape, parts = qkv.shape, qkv.flatten(1, -2)
        groups = parts.shape[1] // 3 if key_heads is None else key_heads
        before_values = parts.shape[1] - groups
        turned = torch.empty_like(parts[:, :before_values], memory_format=torch.contiguous_format)
        _turn(parts[:, :before_values], cos, sin, turned, 1)
        return turned[:, :-groups], turned[:, -groups:], parts[:, before_values:]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        cos, sin = ctx.saved_tensors
        gradient = gradients[0].new_empty(ctx.shape)
        query, key, value = torch.split(gradient.flatten(1, -2), [part.shape[1] for part in gradients], 1)
        for upstream, into in zip(gradients, (query, key), strict=False):
            _turn(upstream, cos, sin, into, -1)
        value.copy_(gradients[2])
        return gradient, None, None, None
