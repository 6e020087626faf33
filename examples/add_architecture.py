"""An architecture of your own: DistilBERT (Sanh et al., 2019), from outside of the package.

    PYTHONPATH=examples maskloom train --import add_architecture CONFIG

CONFIG says `model: {architecture: distilbert, n_layers: 6, ...}`. Every command that meets such a run needs the same
`--import`, or the variable `MASKLOOM_IMPORT=add_architecture`.

Weights, names and shapes are those of Hugging Face's `DistilBertForMaskedLM`. What differs from BERT: there are no token
types, no dropout behind the attention, and the head stands at the top of the model. `maskloom.models.base.Architecture`
says what each member is.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveFloat
from transformers import DistilBertForMaskedLM
from transformers.models.distilbert.modeling_distilbert import TransformerBlock

from maskloom.config import Few, Model, Share, Width
from maskloom.data.batch import MicroBatch
from maskloom.models.architecture import Architecture, Description, add
from maskloom.models.kernels import Kernels
from maskloom.models.layers import (
    ACTIVATIONS,
    Dense,
    Pieces,
    PostNorm,
    PostNormWeights,
    activation,
    add_norm,
    drop,
    feed_forward,
    self_attention,
)


class DistilBert(Model):
    """The section `model`, in the names of Hugging Face's `DistilBertConfig`."""

    dropouts: ClassVar[tuple[str, ...]] = ("dropout", "attention_dropout")

    dim: Width = 768
    n_layers: Few = 6
    n_heads: Few = 12
    hidden_dim: Width = 3072
    activation: Literal["gelu", "relu"] = "gelu"
    dropout: Share = 0.1
    attention_dropout: Share = 0.0
    initializer_range: PositiveFloat = 0.02


def embed(model: Any, batch: MicroBatch) -> torch.Tensor:
    embeddings = model.distilbert.embeddings
    hidden = embeddings.word_embeddings(batch.input_ids) + embeddings.position_embeddings(batch.positions)
    return model.drop(embeddings.LayerNorm(hidden), model.config.dropout)


def weights_of(layer: Any) -> PostNormWeights:
    attention = (layer.attention.q_lin, layer.attention.k_lin, layer.attention.v_lin, layer.attention.out_lin)
    rest = (layer.sa_layer_norm, layer.ffn.lin1, layer.ffn.lin2, layer.output_layer_norm)
    return PostNormWeights(*map(Dense.of, (*attention, *rest)))


def run(hidden: torch.Tensor, weights: PostNormWeights, pieces: Pieces, settings: PostNorm) -> torch.Tensor:
    attended = self_attention(hidden, weights, pieces, settings)
    hidden = add_norm(attended, hidden, weights.attention_norm, settings)
    return add_norm(drop(feed_forward(hidden, weights, settings), settings), hidden, weights.output_norm, settings)


def layer_settings(config: Any, kernels: Kernels, trains: bool) -> list[PostNorm]:
    settings = PostNorm(
        heads=config.n_heads,
        activation=activation(config.activation, kernels),
        layer_norm_eps=1e-12,
        hidden_dropout=config.dropout if trains else 0.0,
        attention_dropout=config.attention_dropout if trains else 0.0,
        kernels=kernels,
    )
    return [settings] * config.n_layers


def transform(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    return model.vocab_layer_norm(model.activation(model.vocab_transform(hidden)))


add(
    Architecture(
        hf_class=DistilBertForMaskedLM,
        layer_class=TransformerBlock,
        settings=DistilBert,
        description=Description(
            sizes=("vocab_size", "dim", "n_layers", "n_heads", "hidden_dim"),
            more_sizes=("max_position_embeddings",),
            ranges={"initializer_range": (0.0, 10.0)},
            choices={"activation": ACTIVATIONS},
            computed={"sinusoidal_pos_embds": (False,)},
            harmless=frozenset({"qa_dropout", "seq_classif_dropout"}),
        ),
        token_ids=lambda tokenizer: {"pad_token_id": tokenizer.pad_id},
        longest_piece=lambda config: config.max_position_embeddings,
        embed=embed,
        layers=lambda model: model.distilbert.transformer.layer,
        weights_of=weights_of,
        run=run,
        layer_settings=layer_settings,
        transform=transform,
        stations=lambda model: (model.distilbert.embeddings.LayerNorm, model.vocab_layer_norm),
        head_names=("vocab_",),
    )
)
