"""The updates of Muon on a CPU: momentum, then five steps of the Newton-Schulz iteration of Jordan et al. (2024).

    X <- X / |X|        five times: A = X X^T,  X <- a X + (b A + c A A) X        X is then nearly orthogonal

The arithmetic is that of DeepSpeed's `muon_update`. It differs in three ways:

- Matrices of one shape are one batch. A batch holds few enough elements to stay in a core's cache.
- A product and the sum that follows are one operator. Nothing is compiled: DeepSpeed compiles for a minute in the first step.
- `standard` computes in bf16 if the CPU has instructions for it, which are four times as fast as fp32's. Else it is fp32:
  without them a product in bf16 can take a hundred times as long.

`gram` iterates over A, which costs less if the matrix is oblong. Errors grow, so it starts again from X after two steps (Dao et
al., 2026, https://tridao.me/blog/2026/gram-newton-schulz/). It is fp32 on a CPU.

Shapes: B matrices in a batch, n rows and m columns, n at most m.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import torch

STEPS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b and c of Jordan et al. (2024)."""
RESTART = 2
"""Steps of `gram` before it starts again."""
BATCH_ELEMENTS = 2**17
"""Most elements of a batch, if it has more than one matrix: 512 KiB of fp32."""


def updates_of(
    gradients: Sequence[torch.Tensor],
    momenta: Sequence[torch.Tensor],
    momentum: float,
    method: str,
    wanted: Sequence[int] | None = None,
) -> list[torch.Tensor]:
    """Muon's update of each matrix, fp32, before the learning rate. It updates all momenta, and writes over the gradients.

    Args:
        gradients, momenta: of the same matrices, in any shapes.
        momentum: how slowly the momentum forgets (Nesterov's).
        method: `gram` or `standard`.
        wanted: numbers of the matrices whose updates are returned, in this order; left out: all.
    """
    wanted = range(len(gradients)) if wanted is None else wanted
    torch._foreach_lerp_(list(momenta), list(gradients), 1 - momentum)
    torch._foreach_lerp_(list(gradients), list(momenta), momentum)
    found: dict[int, torch.Tensor] = {}
    for numbers in batches({number: tuple(gradients[number].shape) for number in wanted}):
        whole = torch.stack([gradients[number] for number in numbers]).float()
        rows, columns = whole.shape[1:]
        orthogonal = orthogonalized(whole, method).mul_(math.sqrt(max(1.0, rows / columns)))
        found.update(zip(numbers, orthogonal.unbind(), strict=True))
    return [found[number] for number in wanted]


def cost_of(rows: int, columns: int) -> int:
    """What a matrix costs, relative to others."""
    return min(rows, columns) * rows * columns


def batches(shapes: Mapping[int, tuple[int, ...]]) -> list[list[int]]:
    """Numbers of the matrices that are computed together: of one shape, at most `BATCH_ELEMENTS` in all, or one."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for number, shape in shapes.items():
        by_shape.setdefault(shape, []).append(number)
    found = []
    for shape, numbers in by_shape.items():
        most = max(1, BATCH_ELEMENTS // math.prod(shape))
        found += [numbers[begin : begin + most] for begin in range(0, len(numbers), most)]
    return found


def orthogonalized(matrices: torch.Tensor, method: str) -> torch.Tensor:
    """Matrices [B, rows, columns] of any shape, made nearly orthogonal, fp32."""
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)
    if method == "gram" and x.shape[-1] > x.shape[-2]:
        x = _by_gram(x)
    else:
        x = _by_matrix(x.bfloat16() if method == "standard" and has_bf16() else x).float()
    return x.mT if is_tall else x


def _by_matrix(x: torch.Tensor) -> torch.Tensor:
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        gram = torch.bmm(x, x.mT)
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return x


def _by_gram(x: torch.Tensor) -> torch.Tensor:
    """Each step is X <- P X with P = a + Z, and hence A <- P A P; `product` gathers the factors P."""
    a, b, c = COEFFICIENTS
    gram, product = torch.bmm(x, x.mT), None
    for step in range(STEPS):
        if product is not None and step == RESTART:
            x = torch.bmm(product, x)
            gram, product = torch.bmm(x, x.mT), None
        z = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        if product is None:
            product = z.clone()
            product.diagonal(dim1=-2, dim2=-1).add_(a)
        else:
            product = torch.baddbmm(product, z, product, beta=a)
        if step + 1 not in (RESTART, STEPS):
            half = torch.baddbmm(gram, z, gram, beta=a)
            gram = torch.baddbmm(half, z, half, beta=a)
    assert product is not None
    return torch.bmm(product, x)


@functools.cache
def has_bf16() -> bool:
    """Whether this CPU multiplies in bf16 by instructions of its own."""
    can = torch.cpu.get_capabilities()
    return any(can.get(name) is True for name in ("avx512_bf16", "amx_bf16", "bf16"))
