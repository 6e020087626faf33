"""ModernBERT (Warner et al., 2024): `ModernBertForMaskedLM`.

    hidden -> norm -> query, key, value in one product -> rotated -> attention within pieces, in most layers within a window
           -> dense -> dropout, + hidden
           -> norm -> two halves in one product -> activation of the first, times the second -> dropout -> dense, + hidden

The first layer has no norm before its attention, since the embeddings have one. Positions are angles alone (`rotary`).

Shapes: T slots, D hidden size, H heads, f feed-forward width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import ModernBertForMaskedLM
from transformers.models.modernbert.modeling_modernbert import ModernBertEncoderLayer

from maskloom.config import ModernBert
from maskloom.data.batch import MicroBatch
from maskloom.models.attention import attend
from maskloom.models.base import Architecture, Description
from maskloom.models.kernels import Kernels
from maskloom.models.layers import ACTIVATIONS, Dense, Pieces, activation
from maskloom.models.rotary import rotate
from maskloom.tokenizers.base import Tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig

GLOBAL, LOCAL = "full_attention", "sliding_attention"


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
    """What of the model's configuration a layer needs; dropouts are 0 in evaluation."""

    heads: int
    window: int | None
    rope_theta: float
    activation: Callable[[torch.Tensor], torch.Tensor]
    norm_eps: float
    attention_dropout: float
    mlp_dropout: float
    kernels: Kernels


def _token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """All five: the defaults of the class are ids of one tokenizer."""
    first, last = tokenizer.cls_id, tokenizer.sep_id
    ends = {"bos_token_id": first, "cls_token_id": first, "eos_token_id": last, "sep_token_id": last}
    return {"pad_token_id": tokenizer.pad_id, **ends}


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
    return hidden + _mlp(_norm(hidden, weights.mlp_norm, settings), weights, settings)


def _attention(hidden: torch.Tensor, weights: Weights, pieces: Pieces, settings: Settings) -> torch.Tensor:
    linear, rotary = settings.kernels.linear, pieces.rotary
    assert rotary is not None, "the settings have a theta"
    normed = hidden if weights.attention_norm is None else _norm(hidden, weights.attention_norm, settings)
    query, key, value = linear(normed, *weights.qkv).view(len(hidden), 3, settings.heads, -1).unbind(1)
    context = attend(rotate(query, rotary), rotate(key, rotary), value, pieces, settings.attention_dropout)
    # Hugging Face has one probability for the attention weights and for what comes out of them.
    return _drop(linear(context.flatten(1), *weights.attention_output), settings.attention_dropout, settings)


def _mlp(normed: torch.Tensor, weights: Weights, settings: Settings) -> torch.Tensor:
    linear = settings.kernels.linear
    activated, gate = linear(normed, *weights.mlp_input).chunk(2, -1)
    product = _drop(settings.activation(activated) * gate, settings.mlp_dropout, settings)
    return linear(product, *weights.mlp_output)


def _norm(hidden: torch.Tensor, norm: Dense, settings: Settings) -> torch.Tensor:
    return F.layer_norm(hidden, hidden.shape[-1:], norm.weight, norm.bias, settings.norm_eps)


def _drop(update: torch.Tensor, probability: float, settings: Settings) -> torch.Tensor:
    return settings.kernels.dropout(update, probability) if probability else update


def _layer_settings(config: PretrainedConfig, kernels: Kernels, trains: bool) -> list[Settings]:
    kinds = {
        kind: Settings(
            heads=config.num_attention_heads,
            window=config.local_attention // 2 if kind == LOCAL else None,
            rope_theta=float(config.rope_parameters[kind]["rope_theta"]),
            activation=activation(config.hidden_activation, kernels),
            norm_eps=config.norm_eps,
            attention_dropout=config.attention_dropout if trains else 0.0,
            mlp_dropout=config.mlp_dropout if trains else 0.0,
            kernels=kernels,
        )
        for kind in (GLOBAL, LOCAL)
    }
    return [kinds[kind] for kind in config.layer_types]


def _finish(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    finished: torch.Tensor = model.model.final_norm(hidden)
    return finished


MODERNBERT = Architecture(
    hf_class=ModernBertForMaskedLM,
    layer_class=ModernBertEncoderLayer,
    settings=ModernBert,
    description=Description(
        sizes=("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
        more_sizes=("max_position_embeddings", "local_attention", "global_attn_every_n_layers"),
        ids=("pad_token_id",),
        ranges={
            "norm_eps": (0.0, 1.0),
            "initializer_range": (0.0, 10.0),
            "global_rope_theta": (0.0, 1e12),
            "local_rope_theta": (0.0, 1e12),
        },
        choices={
            "hidden_activation": ACTIVATIONS,
            "classifier_activation": ACTIVATIONS,
            **dict.fromkeys(
                ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias", "decoder_bias"), (True, False)
            ),
        },
        free=("layer_types", "rope_parameters"),
        harmless=frozenset(
            {
                *(
                    "cls_token_id",
                    "sep_token_id",
                    "initializer_cutoff_factor",
                    "classifier_pooling",
                    "classifier_dropout",
                ),
                *("deterministic_flash_attn", "sparse_prediction", "sparse_pred_ignore_index", "reference_compile"),
            }
        ),
    ),
    token_ids=_token_ids,
    longest_piece=lambda config: int(config.max_position_embeddings),
    embed=_embed,
    layers=lambda model: model.model.layers,
    weights_of=_weights_of,
    run=run,
    layer_settings=_layer_settings,
    finish=_finish,
    transform=lambda model, hidden: model.head(hidden),
    stations=lambda model: (model.model.embeddings.norm, model.head),
    head_names=("head.", "decoder."),
)
