"""The projection of predicted slots to the vocabulary.

Shapes: K predicted tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F


class PaddedDecoder(nn.Linear):
    """The projection to the vocabulary, padded where the device's matrix products need aligned shapes.

    A vocabulary of 30522 rows of 2 bytes is aligned to 4 bytes, and tensor cores want 16: cuBLAS would take a kernel
    several times slower. The padding tokens have logits of -inf: they take no part in the softmax and are never likeliest.
    """

    alignment: int | None = None
    """Multiple that the vocabulary is padded to; None: 64 on a GPU, no padding on a CPU."""
    linear: Callable[..., torch.Tensor] = staticmethod(F.linear)
    """Of the kernels; the padded form is a GPU's, and torch's."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[K, D] -> [K, V'], V' >= V."""
        multiple = self.alignment or (1 if hidden.device.type == "cpu" else 64)
        missing = -self.out_features % multiple
        if not missing:
            return self.linear(hidden, self.weight, self.bias)
        bias = self.weight.new_zeros(self.out_features) if self.bias is None else self.bias
        return F.linear(hidden, F.pad(self.weight, (0, 0, 0, missing)), F.pad(bias, (0, missing), value=-math.inf))
