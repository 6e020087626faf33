"""One encoder layer as a pure function of its weights: what is compiled, and what ZeRO-3 gathers at once.

    hidden -> query, key, value in one product -> attention within pieces -> dense -> dropout, + hidden, LayerNorm
           -> dense, activation -> dense -> dropout, + hidden, LayerNorm

Post-LayerNorm, as in Devlin et al. (2019). The three projections are concatenated where they are used, so that the weights
stay Hugging Face's; the copy is 3 D^2 elements, a product with it 6 T D^2 operations.

Shapes: T slots, D hidden size, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional as F
from transformers import BertConfig
from transformers.activations import ACT2FN
from transformers.models.bert.modeling_bert import BertLayer

from maskloom.models.attention import attend
from maskloom.models.kernels import Kernels


def gelu_new(hidden: torch.Tensor) -> torch.Tensor:
    """Google's approximation of GELU, in one pass; Hugging Face spells it out in eight."""
    return F.gelu(hidden, approximate="tanh")


def activation(name: str, kernels: Kernels) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function that `hidden_act` names; for what is not BERT's own, Hugging Face's."""
    ours = {"gelu": kernels.gelu, "gelu_new": gelu_new, "relu": F.relu}
    found: Callable[[torch.Tensor], torch.Tensor] = ours.get(name) or ACT2FN[name]
    return found


class Dense(NamedTuple):
    """Weight [out, in] and bias [out]; of a LayerNorm, both [D]."""

    weight: torch.Tensor
    bias: torch.Tensor


class LayerWeights(NamedTuple):
    """The parameters of a `BertLayer`, in the order of use."""

    query: Dense
    key: Dense
    value: Dense
    attention_output: Dense
    attention_norm: Dense
    intermediate: Dense
    output: Dense
    output_norm: Dense

    @staticmethod
    def of(layer: BertLayer) -> LayerWeights:
        attention = layer.attention
        modules = (
            *(attention.self.query, attention.self.key, attention.self.value),
            *(attention.output.dense, attention.output.LayerNorm),
            *(layer.intermediate.dense, layer.output.dense, layer.output.LayerNorm),
        )
        return LayerWeights(*(Dense(module.weight, module.bias) for module in modules))


@dataclass(frozen=True)
class LayerSettings:
    """What of the model's configuration a layer needs."""

    heads: int
    activation: Callable[[torch.Tensor], torch.Tensor]
    layer_norm_eps: float
    hidden_dropout: float
    attention_dropout: float
    kernels: Kernels

    @staticmethod
    def of(config: BertConfig, kernels: Kernels, training: bool) -> LayerSettings:
        return LayerSettings(
            heads=config.num_attention_heads,
            activation=activation(config.hidden_act, kernels),
            layer_norm_eps=config.layer_norm_eps,
            hidden_dropout=config.hidden_dropout_prob if training else 0.0,
            attention_dropout=config.attention_probs_dropout_prob if training else 0.0,
            kernels=kernels,
        )


class Pieces(NamedTuple):
    """Where attention may look: what `attention.attend` needs beside query, key and value."""

    cu_seqlens: torch.Tensor
    mask: torch.Tensor | None
    seq_len: int


def encoder_layer(hidden: torch.Tensor, weights: LayerWeights, pieces: Pieces, settings: LayerSettings) -> torch.Tensor:
    """One layer: [T, D] -> [T, D]."""
    projections = weights[:3]
    qkv = F.linear(
        hidden, torch.cat([part.weight for part in projections]), torch.cat([part.bias for part in projections])
    )
    query, key, value = qkv.view(len(hidden), 3, settings.heads, -1).unbind(1)
    context = attend(query, key, value, pieces.cu_seqlens, pieces.mask, pieces.seq_len, settings.attention_dropout)
    attended = F.linear(context.flatten(1), *weights.attention_output)
    hidden = dropout_add_norm(attended, hidden, weights.attention_norm, settings)
    wide = settings.activation(F.linear(hidden, *weights.intermediate))
    return dropout_add_norm(F.linear(wide, *weights.output), hidden, weights.output_norm, settings)


def dropout_add_norm(update: torch.Tensor, hidden: torch.Tensor, norm: Dense, settings: LayerSettings) -> torch.Tensor:
    """LayerNorm(hidden + dropout(update)): [T, D] -> [T, D]."""
    if settings.hidden_dropout:
        update = settings.kernels.dropout(update, settings.hidden_dropout)
    return F.layer_norm(hidden + update, hidden.shape[-1:], norm.weight, norm.bias, settings.layer_norm_eps)
