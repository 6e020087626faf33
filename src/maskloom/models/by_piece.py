"""Attention one piece at a time, for long rows without the variable-length kernel. It needs no mask, and no tensor of [S, S].

In eager code it is a loop over torch's own attention. Compiled code would be compiled anew for each bucket, since the lengths
of pieces differ. There the loop is an operator with a backward of its own, over `QUERIES` queries at a time. Both apply
dropout. The operator draws it from a seed, so that its backward draws the same.

Shapes: T slots, n slots of a piece, H heads, D head size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch.nn.functional import scaled_dot_product_attention

QUERIES = 256
"""Queries of a piece whose scores the operator holds at once."""


def by_piece(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, positions: torch.Tensor, dropout: float
) -> torch.Tensor:
    """Attention of each slot over its own piece.

    Args:
        query, key, value: [T, H, D].
        positions: int64 [T], on the CPU, so that reading them does not wait for a GPU; they restart with every piece.
        dropout: probability with which an attention weight is dropped.

    Returns:
        [T, H, D].
    """
    if torch.compiler.is_compiling():
        seed = torch.randint(2**62, (), dtype=torch.int64) if dropout else torch.zeros((), dtype=torch.int64)
        return cast(torch.Tensor, _attend(query, key, value, positions, seed, dropout))
    lengths = [end - start for start, end in _bounds(positions)]
    # split, not slices: the gradient of each slice would be a tensor of all slots
    queries, keys, values = (torch.split(part.transpose(0, 1)[None], lengths, 2) for part in (query, key, value))
    outputs = [
        scaled_dot_product_attention(*parts, dropout_p=dropout) for parts in zip(queries, keys, values, strict=True)
    ]
    return torch.cat([output[0].transpose(0, 1) for output in outputs])


def _bounds(positions: torch.Tensor) -> Iterator[tuple[int, int]]:
    """First slot of each piece, and the one behind its last."""
    starts: list[int] = (positions == 0).nonzero().flatten().tolist()
    return itertools.pairwise([*starts, len(positions)])


@torch.library.custom_op("maskloom::attend_by_piece", mutates_args=())
def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    positions: torch.Tensor,
    seed: torch.Tensor,
    dropout: float,
) -> torch.Tensor:
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    for queries, keys, weights, kept in _chunks(query, key, positions, seed, dropout):
        output[queries] = torch.einsum("hqk,khd->qhd", weights * kept, value[keys].float()).to(query.dtype)
    return output


@_attend.register_fake
def _(query: torch.Tensor, *others: object) -> torch.Tensor:
    return torch.empty(query.shape, dtype=query.dtype, device=query.device)


@torch.library.custom_op("maskloom::attend_by_piece_backward", mutates_args=())
def _attend_backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    positions: torch.Tensor,
    seed: torch.Tensor,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    to_query, to_key, to_value = (
        torch.zeros(part.shape, dtype=torch.float32, device=part.device) for part in (query, key, value)
    )
    scale = query.shape[-1] ** -0.5
    for queries, keys, weights, kept in _chunks(query, key, positions, seed, dropout):
        upstream = gradient[queries].float()
        to_value[keys] += torch.einsum("hqk,qhd->khd", weights * kept, upstream)
        to_weights = torch.einsum("qhd,khd->hqk", upstream, value[keys].float()) * kept
        to_scores = weights * (to_weights - (weights * to_weights).sum(-1, keepdim=True)) * scale
        to_query[queries] = torch.einsum("hqk,khd->qhd", to_scores, key[keys].float())
        to_key[keys] += torch.einsum("hqk,qhd->khd", to_scores, query[queries].float())
    return to_query.to(query.dtype), to_key.to(key.dtype), to_value.to(value.dtype)


@_attend_backward.register_fake
def _(gradient: torch.Tensor, *parts: Any) -> tuple[torch.Tensor, ...]:
    return tuple(torch.empty(part.shape, dtype=part.dtype, device=part.device) for part in parts[:3])


def _chunks(
    query: torch.Tensor, key: torch.Tensor, positions: torch.Tensor, seed: torch.Tensor, dropout: float
) -> Iterator[tuple[slice, slice, torch.Tensor, torch.Tensor | float]]:
    """Up to `QUERIES` queries of a piece at a time.

    Yields:
        the queries' slots; the piece's slots; the softmax of the scores, fp32 [H, q, n]; and the factor of dropout, a tensor of
        this shape or 1.0.
    """
    generator = torch.Generator(query.device).manual_seed(int(seed)) if dropout else None
    for start, end in _bounds(positions):
        for first in range(start, end, QUERIES):
            queries, keys = slice(first, min(first + QUERIES, end)), slice(start, end)
            scores = torch.einsum("qhd,khd->hqk", query[queries].float(), key[keys].float())
            weights = (scores / math.sqrt(query.shape[-1])).softmax(-1)
            kept: torch.Tensor | float = 1.0
            if generator is not None:
                drawn = torch.rand(weights.shape, generator=generator, device=weights.device) >= dropout
                kept = drawn / (1 - dropout) if dropout < 1 else drawn.float()
            yield queries, keys, weights, kept


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *tensors, ctx.dropout = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return (*_attend_backward(gradient, *ctx.saved_tensors, ctx.dropout), None, None, None)


_attend.register_autograd(_backward, setup_context=_keep_inputs)
