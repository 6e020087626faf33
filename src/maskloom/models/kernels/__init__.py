"""The parts of the forward that gain from fusing, each with a plain `reference` and a `fused` form of the same function.

`eager` runs the fused forms; torch's own GELU is one. `compile` gives Inductor plain torch, which it fuses with the operations
around it; it could not fuse across a kernel of ours. Random numbers on a CPU are the exception: Inductor's cost more than the
operations that they are fused with. `onednn` is `eager` with oneDNN's products, for CPUs. A further choice is one more row of
the table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from maskloom.models.kernels import cross_entropy, dropout, gelu, glu, linear, rotate


class Kernels(NamedTuple):
    """One implementation of each part; see the modules of the same names for shapes."""

    dropout: Callable[[torch.Tensor, float], torch.Tensor]
    cross_entropy: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    gelu: Callable[[torch.Tensor], torch.Tensor]
    linear: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor] = linear.reference
    rotate: Callable[..., rotate.Parts] = rotate.reference
    glu: Callable[[torch.Tensor], torch.Tensor] = glu.reference


KERNELS = {
    "eager": Kernels(dropout.fused, cross_entropy.fused, gelu.reference, rotate=rotate.fused, glu=glu.fused),
    "compile": Kernels(dropout.compiled, cross_entropy.reference, gelu.fused, glu=glu.compiled),
    "onednn": Kernels(dropout.fused, cross_entropy.fused, gelu.reference, linear.fused, rotate.fused, glu.fused),
}
"""By the names of `engine.kernels`."""
