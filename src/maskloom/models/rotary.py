"""Rotary position embeddings (Su et al., 2021): queries and keys are turned by angles that grow with the position.

Elements i and i + D/2 of a head are a pair and turn together. `kernels.rotate` turns them.

Tables are made from the configuration, in fp32, once a micro-batch. Hugging Face keeps frequencies in a buffer of the model. If
the model is cast to bf16, they lose digits: at position 8191 the angle is then off by up to 7.8 radians.

Shapes: T slots, D head size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Rotary(NamedTuple):
    """Cosines and sines of every slot's angles: fp32 [T, 1, D/2]."""

    cos: torch.Tensor
    sin: torch.Tensor


def rotary_table(positions: torch.Tensor, head_size: int, theta: float) -> Rotary:
    """The angles of slots.

    Args:
        positions: int64 [T].
        theta: base of the frequencies: the slowest pair turns once in about 2 pi theta positions.
    """
    exponents = torch.arange(0, head_size, 2, dtype=torch.float32, device=positions.device) / head_size
    angles = (positions[:, None].float() * (1.0 / theta**exponents))[:, None]
    return Rotary(angles.cos(), angles.sin())
