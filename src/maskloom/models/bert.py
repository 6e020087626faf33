"""BERT (Devlin et al., 2019): `BertForMaskedLM`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import BertForMaskedLM
from transformers.models.bert.modeling_bert import BertLayer

from maskloom.config import Bert
from maskloom.data.batch import MicroBatch
from maskloom.models.base import Architecture, Description
from maskloom.models.kernels import Kernels
from maskloom.models.layers import (
    ACTIVATIONS,
    Dense,
    PostNorm,
    PostNormWeights,
    activation,
    post_norm,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def _build(config: PretrainedConfig) -> BertForMaskedLM:
    """The layers are drawn a second time, as earlier versions did: the weights of a seed stay what they were."""
    model = BertForMaskedLM(config)
    numbers = range(config.num_hidden_layers)
    model.bert.encoder.layer = nn.ModuleList([BertLayer(config, layer_idx=number) for number in numbers])
    model.post_init()
    return model


def _embed(model: Any, batch: MicroBatch) -> torch.Tensor:
    embeddings = model.bert.embeddings
    hidden = embeddings.word_embeddings(batch.input_ids) + embeddings.position_embeddings(batch.positions)
    hidden = embeddings.LayerNorm(hidden + embeddings.token_type_embeddings.weight[0])
    dropped: torch.Tensor = model.drop(hidden, model.config.hidden_dropout_prob)
    return dropped


def _weights_of(layer: Any) -> PostNormWeights:
    attention = layer.attention
    modules = (
        *(attention.self.query, attention.self.key, attention.self.value),
        *(attention.output.dense, attention.output.LayerNorm),
        *(layer.intermediate.dense, layer.output.dense, layer.output.LayerNorm),
    )
    return PostNormWeights(*map(Dense.of, modules))


def _layer_settings(config: PretrainedConfig, kernels: Kernels, trains: bool) -> list[PostNorm]:
    settings = PostNorm(
        heads=config.num_attention_heads,
        activation=activation(config.hidden_act, kernels),
        layer_norm_eps=config.layer_norm_eps,
        hidden_dropout=config.hidden_dropout_prob if trains else 0.0,
        attention_dropout=config.attention_probs_dropout_prob if trains else 0.0,
        kernels=kernels,
    )
    return [settings] * config.num_hidden_layers


BERT = Architecture(
    hf_class=BertForMaskedLM,
    layer_class=BertLayer,
    settings=Bert,
    description=Description(
        sizes=("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
        more_sizes=("max_position_embeddings", "type_vocab_size"),
        ranges={"layer_norm_eps": (0.0, 1.0), "initializer_range": (0.0, 10.0)},
        choices={"hidden_act": ACTIVATIONS},
        computed={"position_embedding_type": ("absolute",)},
        harmless=frozenset({"classifier_dropout"}),
    ),
    token_ids=lambda tokenizer: {"pad_token_id": tokenizer.pad_id},
    longest_piece=lambda config: int(config.max_position_embeddings),
    embed=_embed,
    layers=lambda model: model.bert.encoder.layer,
    weights_of=_weights_of,
    run=post_norm,
    layer_settings=_layer_settings,
    transform=lambda model, hidden: model.cls.predictions.transform(hidden),
    stations=lambda model: (model.bert.embeddings.LayerNorm, model.cls.predictions.transform),
    head_names=("cls.predictions.",),
    spare_names=("bert.pooler.",),
    counter_names=("bert.embeddings.position_ids", "bert.embeddings.token_type_ids"),
    old_endings={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
    build=_build,
)
