"""One encoder layer as a pure function of its weights: what is compiled, and what ZeRO-3 gathers at once.

    hidden -> query, key, value in one product -> attention within pieces -> dense -> dropout, + hidden, LayerNorm
           -> dense, activation -> dense -> dropout, + hidden, LayerNorm

Post-LayerNorm, as in Devlin et al. (2019). The three projections are concatenated where they are used, so that the weights
stay Hugging Face's; the copy is 3 D^2 elements, a product with it 6 T D^2 operations.

Shapes: T slots, D hidden size, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from transformers.activations import ACT2FN

from maskloom.models.attention import Pieces as Pieces
from maskloom.models.attention import attend
from maskloom.models.kernels import Kernels

ACTIVATIONS = (
    *("gelu", "gelu_new", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_python", "gelu_python_tanh"),
    *("gelu_pytorch_tanh", "quick_gelu", "relu", "relu2", "relu6", "leaky_relu", "hardswish", "laplace", "linear"),
    *("mish", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh"),
)
"""The names that `activation` knows: those of Hugging Face's activations that have no parameters."""


def gelu_new(hidden: torch.Tensor) -> torch.Tensor:
    """Google's approximation of GELU, in one pass; Hugging Face spells it out in eight."""
    return F.gelu(hidden, approximate="tanh")


def activation(name: str, kernels: Kernels) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function that Hugging Face calls `name`; ours if there is one, else theirs."""
    ours = {"gelu": kernels.gelu, "gelu_new": gelu_new, "relu": F.relu}
    found: Callable[[torch.Tensor], torch.Tensor] = ours.get(name) or ACT2FN[name]
    return found


class Dense(NamedTuple):
    """Weight [out, in] and bias [out] or None; of a norm, both [D]."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    @staticmethod
    def of(module: Any) -> Dense:
        """The parameters of a Linear, a LayerNorm or an RMSNorm, which has no bias."""
        return Dense(module.weight, getattr(module, "bias", None))


class PostNormWeights(NamedTuple):
    """The parameters of a layer, in the order of use."""

    query: Dense
    key: Dense
    value: Dense
    attention_output: Dense
    attention_norm: Dense
    intermediate: Dense
    output: Dense
    output_norm: Dense


@dataclass(frozen=True)
class PostNorm:
    """The values of the model's configuration that a layer needs. Dropouts are 0 in evaluation."""

    heads: int
    activation: Callable[[torch.Tensor], torch.Tensor]
    layer_norm_eps: float
    hidden_dropout: float
    attention_dropout: float
    kernels: Kernels

    @property
    def window(self) -> None:
        """A slot sees its whole piece."""
        return None


def post_norm(hidden: torch.Tensor, weights: PostNormWeights, pieces: Pieces, settings: PostNorm) -> torch.Tensor:
    """One layer: [T, D] -> [T, D]."""
    attended = self_attention(hidden, weights, pieces, settings)
    hidden = add_norm(drop(attended, settings), hidden, weights.attention_norm, settings)
    return add_norm(drop(feed_forward(hidden, weights, settings), settings), hidden, weights.output_norm, settings)


def self_attention(hidden: torch.Tensor, weights: PostNormWeights, pieces: Pieces, settings: PostNorm) -> torch.Tensor:
    """Attention within pieces, and the product with its output matrix: [T, D] -> [T, D]."""
    qkv = settings.kernels.linear(hidden, *joined(weights[:3]))
    query, key, value = qkv.view(len(hidden), 3, settings.heads, -1).unbind(1)
    context = attend(query, key, value, pieces, settings.attention_dropout)
    return settings.kernels.linear(context.flatten(1), *weights.attention_output)


def joined(parts: Sequence[Dense]) -> Dense:
    """Several layers of the same input as one product: the outputs stand beside each other. All have a bias, or none."""
    biases = [part.bias for part in parts if part.bias is not None]
    return Dense(torch.cat([part.weight for part in parts]), torch.cat(biases) if biases else None)


def feed_forward(hidden: torch.Tensor, weights: PostNormWeights, settings: PostNorm) -> torch.Tensor:
    """[T, D] -> [T, D]."""
    linear = settings.kernels.linear
    return linear(settings.activation(linear(hidden, *weights.intermediate)), *weights.output)


def drop(update: torch.Tensor, settings: PostNorm) -> torch.Tensor:
    """Dropout of a sublayer's output: [T, D] -> [T, D]."""
    return settings.kernels.dropout(update, settings.hidden_dropout) if settings.hidden_dropout else update


def add_norm(update: torch.Tensor, hidden: torch.Tensor, norm: Dense, settings: PostNorm) -> torch.Tensor:
    """LayerNorm(hidden + update): [T, D] -> [T, D]."""
    return layer_norm(hidden + update, norm, settings.layer_norm_eps)


def layer_norm(hidden: torch.Tensor, norm: Dense, eps: float) -> torch.Tensor:
    """LayerNorm, with or without a bias: [T, D] -> [T, D]."""
    return F.layer_norm(hidden, hidden.shape[-1:], norm.weight, norm.bias, eps)


def rms_norm(hidden: torch.Tensor, norm: Dense, eps: float) -> torch.Tensor:
    """RMSNorm (Zhang & Sennrich, 2019): the mean is not subtracted, and nothing is added. [T, D] -> [T, D]."""
    return F.rms_norm(hidden, hidden.shape[-1:], norm.weight, eps)


def gated(both: torch.Tensor, activation: Callable[[torch.Tensor], torch.Tensor], kernels: Kernels) -> torch.Tensor:
    """A gated linear unit (Shazeer, 2020): activation(first half) times the second half. [T, 2 f] -> [T, f]."""
    if activation is kernels.gelu:
        return kernels.glu(both)
    activated, gate = both.chunk(2, -1)
    return activation(activated) * gate
