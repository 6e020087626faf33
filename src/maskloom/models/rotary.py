"""Rotary position embeddings (Su et al., 2021): queries and keys are turned by angles that grow with the position.

Elements i and i + D/2 of a head are a pair and turn together. `kernels.rotate` turns them.

Tables are made from the configuration, in fp32, once a micro-batch. Hugging Face keeps frequencies in a buffer of the model. If
the model is cast to bf16, they lose digits: at position 8191 the angle is then off by up to 7.8 radians.

Shapes: T slots, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch

from maskloom.config_values import THETAS
from maskloom.redaction import brief

LARGEST_THETA = THETAS[1]
DEFAULT_ROPE = ({"rope_type": "default"}, {"type": "default"})
"""How a config.json says that frequencies are not scaled for longer pieces."""


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


def rope_faults(given: object, name: str, tree: Mapping[str, object], old_key: str) -> Iterator[str]:
    """A sentence for each value of an object `rope_parameters` with which angles would differ from those of `rotary_table`.

    Args:
        given: the object. It may lack `rope_theta`, for which the class has a default.
        name: what messages call it.
        tree: the config.json that it is in.
        old_key: key of the base in files of earlier releases.
    """
    if not isinstance(given, dict):
        yield f"{name} is {brief(given)}, which is not an object"
        return
    for key in sorted(given.keys() - {"rope_theta"}):
        if {key: given[key]} not in DEFAULT_ROPE:
            computed = "'default'" if key in ("rope_type", "type") else "no such key"
            yield f"{name} has {brief(key)}: {brief(given[key])} (computed: {computed})"
    theta = given.get("rope_theta", 1.0)
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not THETAS[0] < theta < THETAS[1]:
        yield f"{name}.rope_theta is {brief(theta)}, which is not a number between {THETAS[0]:g} and {THETAS[1]:g}"
    elif "rope_theta" in given and tree.get(old_key, theta) != theta:
        yield f"{old_key} is {brief(tree[old_key])}, and {name}.rope_theta is {theta}: remove the wrong one"
