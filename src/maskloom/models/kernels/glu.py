"""A gated linear unit with GELU (Shazeer, 2020): the first half through GELU, times the second.

The reference keeps for the backward what the product gave, and of half its width GELU's output. It fills and adds two tensors
to make one gradient of both halves. The fused form keeps the product's output alone, computes GELU once more, and writes both
halves of the gradient into one tensor. On a CPU it goes over blocks of slots that stay in its cache: at the shapes of a base
model that halves the time of the backward.

Shapes: T slots, f feed-forward width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch.nn import functional as F

from maskloom.models.kernels import gelu

CPU_BLOCK_BYTES = 4 << 20
"""Of the product's output that are worked on at once on a CPU."""


def reference(both: torch.Tensor) -> torch.Tensor:
    """gelu(first) second of both halves: [T, 2 f] -> [T, f]; any dtype."""
    first, second = both.chunk(2, -1)
    return F.gelu(first) * second


def compiled(both: torch.Tensor) -> torch.Tensor:
    """What `reference` gives, for compiled code, with the GELU of such."""
    first, second = both.chunk(2, -1)
    return gelu.fused(first) * second


def fused(both: torch.Tensor) -> torch.Tensor:
    """What `reference` gives."""
    return cast(torch.Tensor, _Glu.apply(both))  # type: ignore[no-untyped-call]


def _blocks(both: torch.Tensor, *others: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """[T, 2 f] and tensors of as many slots, in blocks of slots; on a GPU as they are, as few launches count more."""
    slots, width = both.shape
    fitting = max(1, CPU_BLOCK_BYTES // (both.element_size() * width)) if both.device.type == "cpu" else max(1, slots)
    return zip(*(torch.split(tensor, fitting) for tensor in (both, *others)), strict=True)


class _Glu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(both)
        product = both.new_empty(len(both), both.shape[1] // 2)
        for block, out in _blocks(both, product):
            first, second = block.chunk(2, -1)
            torch.mul(F.gelu(first), second, out=out)
        return product

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (both,) = ctx.saved_tensors
        gradient = torch.empty_like(both)
        for block, upstream, out in _blocks(both, gradients[0], gradient):
            first, second = block.chunk(2, -1)
            to_first, to_second = out.chunk(2, -1)
            torch.mul(upstream, F.gelu(first), out=to_second)
            torch.ops.aten.gelu_backward.grad_input(upstream * second, first, grad_input=to_first)
        return gradient
