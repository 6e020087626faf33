"""The product of slots with a matrix, plus a bias.

torch gives products in fp32 on a CPU to MKL, which has AVX2 code for AMD's processors, also if they have AVX-512. oneDNN, which
torch is built with too, has AVX-512 code for all. On a core of an EPYC of 2025 (Zen 5) it reaches 180 to 245 GFLOP/s at
BERT-base's shapes, MKL 110. The fused form is oneDNN's. It adds up in another order: results differ in their last bits.

Shapes: T slots, I inputs, O outputs.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, cast

import torch
from torch.nn import functional as F


def is_available() -> bool:
    """Whether this build of torch has oneDNN."""
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


@functools.cache
def is_faster(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether oneDNN is known to be faster here: on AMD's processors with AVX-512. On others it was not measured."""
    try:
        text = cpuinfo.read_text()
    except OSError:  # not Linux
        return False
    return is_available() and "AuthenticAMD" in text and "avx512f" in text


def reference(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """hidden W^T + bias: [T, I], [O, I], [O] -> [T, O]; any dtype."""
    return F.linear(hidden, weight, bias)


def fused(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """What `reference` gives, to rounding, by oneDNN; in other dtypes than fp32 and on a GPU the same."""
    if hidden.device.type != "cpu" or hidden.dtype != torch.float32:
        return reference(hidden, weight, bias)
    return cast(torch.Tensor, _Linear.apply(hidden, weight, bias))  # type: ignore[no-untyped-call]


def _product(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """left right^T + bias: [A, B], [C, B], [C] -> [A, C]. The operator is Inductor's, for models that are only run."""
    return cast(torch.Tensor, torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], ""))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(hidden, weight)
        return _product(hidden, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        hidden, weight = ctx.saved_tensors
        (gradient,) = gradients
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad
        # oneDNN takes a transposed weight as it is. With two transposed operands it is slower than with copies of them.
        return (
            _product(gradient, weight.t()) if needs_hidden else None,
            _product(gradient.t().contiguous(), hidden.t().contiguous()) if needs_weight else None,
            gradient.sum(0) if needs_bias else None,
        )
