"""A gated linear unit with GELU (Shazeer, 2020): GELU(first half) times the second half.

For the backward, the reference keeps its input, and GELU's output at half the width. It fills and adds two tensors to make one
gradient of both halves. The fused form keeps only its input, computes GELU once more, and writes both halves of the gradient
into one tensor. On a CPU it works on blocks of slots that fit into the cache: at the shapes of a base model that halves the
time of the backward.

Shapes: T slots, f feed-forward width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch.nn import functional as F

from maskloom.models.kernels import gelu

CPU_BLOCK_BYTES = 4 << 20
"""Size of a block of the input, on a CPU."""


def reference(both: torch.Tensor) -> torch.Tensor:
    """GELU(first half) times the second half: [T, 2 f] -> [T, f]; any dtype."""
    first, second = both.chunk(2, -1)
    return F.gelu(first) * second


def compiled(both: torch.Tensor) -> torch.Tensor:
    """What `reference` gives, for compiled code, with its form of GELU."""
    first, second = both.chunk(2, -1)
    return gelu.fused(first) * second


def fused(both: torch.Tensor) -> torch.Tensor:
    """What `reference` gives."""
    return cast(torch.Tensor, _Glu.apply(both))  # type: ignore[no-untyped-call]


def _blocks(both: torch.Tensor, *others: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """[T, 2 f] and other tensors of T slots, in blocks of slots; in one block on a GPU, where few launches matter more."""
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
