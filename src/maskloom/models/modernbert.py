"""ModernBERT (Warner et al., 2024): `ModernBertForMaskedLM`.

    hidden -> norm -> query, key, value in one product -> rotated -> attention within pieces, in most layers within a window
           -> dense -> dropout, + hidden
           -> norm -> two halves in one product -> activation(first) times second -> dropout -> dense, + hidden

The first layer has no norm before its attention, since the embeddings have one. Positions are rotations (`rotary`), not a table.

Shapes: T slots, D hidden size, H heads, f feed-forward width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from transformers import ModernBertForMaskedLM
from transformers.models.modernbert.modeling_modernbert import ModernBertEncoderLayer

from maskloom.config import ModernBert
from maskloom.data.batch import MicroBatch
from maskloom.models.attention import attend
from maskloom.models.base import Architecture
from maskloom.models.kernels import Kernels
from maskloom.models.layers import Dense, Pieces, activation, gated, layer_norm
from maskloom.models.modernbert_config import DESCRIPTION, GLOBAL, LOCAL, old_keys, set_fields, token_ids

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Weights(NamedTuple):
    """The parameters of a layer, in the order of use: Wqkv [3 D, D], Wi [2 f, D], Wo [D, D] and [D, f]."""

    attention_norm: Dense | None
    """None in the first layer."""
    qkv: Dense
    attention_output: Dense
    mlp_norm: Dense
    mlp_input: Dense
    mlp_output: Dense


@dataclass(frozen=True)
class Settings:
    """The values of the model's configuration that a layer needs. Dropouts are 0 in evaluation."""

    heads: int
    window: int | None
    activation: Callable[[torch.Tensor], torch.Tensor]
    norm_eps: float
    attention_dropout: float
    mlp_dropout: float
    kernels: Kernels


def _embed(model: Any, batch: MicroBatch) -> torch.Tensor:
    embeddings = model.model.embeddings
    hidden = embeddings.norm(embeddings.tok_embeddings(batch.input_ids))
    dropped: torch.Tensor = model.drop(hidden, model.config.embedding_dropout)
    return dropped


def _weights_of(layer: Any) -> Weights:
    attention, mlp = layer.attn, layer.mlp
    norm = None if isinstance(layer.attn_norm, nn.Identity) else Dense.of(layer.attn_norm)
    return Weights(norm, *map(Dense.of, (attention.Wqkv, attention.Wo, layer.mlp_norm, mlp.Wi, mlp.Wo)))


def run(hidden: torch.Tensor, weights: Weights, pieces: Pieces, settings: Settings) -> torch.Tensor:
    """One layer: [T, D] -> [T, D]."""
    hidden = hidden + _attention(hidden, weights, pieces, settings)
    return hidden + _mlp(layer_norm(hidden, weights.mlp_norm, settings.norm_eps), weights, settings)


def _attention(hidden: torch.Tensor, weights: Weights, pieces: Pieces, settings: Settings) -> torch.Tensor:
    linear, rotary = settings.kernels.linear, pieces.rotary
    assert rotary is not None, "every layer has a theta"
    norm = weights.attention_norm
    normed = hidden if norm is None else layer_norm(hidden, norm, settings.norm_eps)
    qkv = linear(normed, *weights.qkv).view(len(hidden), 3, settings.heads, -1)
    context = attend(*settings.kernels.rotate(qkv, *rotary), pieces, settings.attention_dropout)
    # Hugging Face uses this probability for the attention weights and for the sublayer's output.
    return _drop(linear(context.flatten(1), *weights.attention_output), settings.attention_dropout, settings)


def _mlp(normed: torch.Tensor, weights: Weights, settings: Settings) -> torch.Tensor:
    linear = settings.kernels.linear
    product = gated(linear(normed, *weights.mlp_input), settings.activation, settings.kernels)
    return linear(_drop(product, settings.mlp_dropout, settings), *weights.mlp_output)


def _drop(update: torch.Tensor, probability: float, settings: Settings) -> torch.Tensor:
    return settings.kernels.dropout(update, probability) if probability else update


def _layer_settings(config: PretrainedConfig, kernels: Kernels, trains: bool) -> list[Settings]:
    kinds = {
        kind: Settings(
            heads=config.num_attention_heads,
            window=config.local_attention // 2 if kind == LOCAL else None,
            activation=activation(config.hidden_activation, kernels),
            norm_eps=config.norm_eps,
            attention_dropout=config.attention_dropout if trains else 0.0,
            mlp_dropout=config.mlp_dropout if trains else 0.0,
            kernels=kernels,
        )
        for kind in (GLOBAL, LOCAL)
    }
    return [kinds[kind] for kind in config.layer_types]


def _rope_thetas(config: PretrainedConfig) -> list[float]:
    return [float(config.rope_parameters[kind]["rope_theta"]) for kind in config.layer_types]


def _finish(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    finished: torch.Tensor = model.model.final_norm(hidden)
    return finished


MODERNBERT = Architecture(
    hf_class=ModernBertForMaskedLM,
    layer_class=ModernBertEncoderLayer,
    settings=ModernBert,
    description=DESCRIPTION,
    token_ids=token_ids,
    longest_piece=lambda config: int(config.max_position_embeddings),
    embed=_embed,
    layers=lambda model: model.model.layers,
    weights_of=_weights_of,
    run=run,
    layer_settings=_layer_settings,
    rope_thetas=_rope_thetas,
    finish=_finish,
    transform=lambda model, hidden: model.head(hidden),
    stations=lambda model: (model.model.embeddings.norm, model.head),
    head_names=("head.", "decoder."),
    set_fields=set_fields,
    old_keys=old_keys,
)
