"""A Llama-style encoder of your own: EuroBERT (Boizard et al., 2025), from outside of the package.

    PYTHONPATH=examples maskloom train --import add_eurobert CONFIG

CONFIG says `model: {architecture: eurobert, num_key_value_heads: 4, ...}`. Every command that meets such a run needs the same
`--import`, or the variable `MASKLOOM_IMPORT=add_eurobert`.

    hidden -> RMSNorm -> query, key, value -> rotated -> attention, queries in groups that share a key -> dense, + hidden
           -> RMSNorm -> SiLU of the gate, times up -> down, + hidden

Weights, names and shapes are those of Hugging Face's `EuroBertForMaskedLM`. Nothing stands between the last norm and the
decoder, whose matrix is its own. `maskloom.models.base.Architecture` says what each member is. The published models have
`rope_theta: 250000` for pieces of 8,192 tokens. `phases.N.rope_theta` changes it in a later phase.

Shapes: T slots, D hidden size, H heads of queries, G heads of keys and of values, f feed-forward width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self

import pydantic
import torch
from pydantic import PositiveFloat
from transformers import EuroBertForMaskedLM
from transformers.models.eurobert.modeling_eurobert import EuroBertDecoderLayer

from maskloom.config import Few, Model, Share, Width
from maskloom.models.architecture import Architecture, Description, add
from maskloom.models.attention import attend
from maskloom.models.kernels import Kernels
from maskloom.models.layers import ACTIVATIONS, Dense, Pieces, activation, gated, joined, rms_norm
from maskloom.models.rotary import DEFAULT_ROPE, LARGEST_THETA, rope_faults


class EuroBert(Model):
    """The section `model`, in the names of Hugging Face's `EuroBertConfig`."""

    dropouts: ClassVar[tuple[str, ...]] = ("attention_dropout",)
    beside_init: ClassVar[tuple[str, ...]] = ("max_position_embeddings", "rope_theta")

    architecture: str = "eurobert"
    hidden_size: Width = 768
    num_hidden_layers: Few = 12
    num_attention_heads: Few = 12
    num_key_value_heads: Few | None = None
    """Heads of keys and of values. Left out: as many as of queries."""
    head_dim: Width | None = None
    """Width of a head. Left out: hidden_size / num_attention_heads."""
    intermediate_size: Width = 3072
    hidden_act: Literal["silu", "gelu", "relu"] = "silu"
    rope_theta: PositiveFloat = 10_000.0
    """Base of the rotary frequencies. In config.json it is a part of `rope_parameters`. `phases.N.rope_theta` changes it."""
    attention_dropout: Share = 0.0
    initializer_range: PositiveFloat = 0.02
    rms_norm_eps: PositiveFloat = 1e-5
    attention_bias: bool = False
    mlp_bias: bool = False
    """Biases of the feed-forward part and of the decoder."""
    tie_word_embeddings: bool = False

    @pydantic.model_validator(mode="after")
    def _heads(self) -> Self:
        for fault in head_faults(self.model_dump()):
            raise ValueError(fault)
        return self


def head_faults(shape: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the numbers of heads in a section or a config.json, a sentence each."""
    width, heads = shape["hidden_size"], shape["num_attention_heads"]
    groups, size = shape.get("num_key_value_heads") or heads, shape.get("head_dim") or width // heads
    if width % heads:
        yield f"hidden_size {width} is not a multiple of num_attention_heads {heads}"
    if heads % groups:
        yield f"num_attention_heads {heads} is not a multiple of num_key_value_heads {groups}"
    if size % 2:
        yield f"a head has {size} elements, and rotary positions turn pairs of them"


class Weights(NamedTuple):
    """The parameters of a layer, in the order of use."""

    attention_norm: Dense
    query: Dense
    key: Dense
    value: Dense
    attention_output: Dense
    mlp_norm: Dense
    gate: Dense
    up: Dense
    down: Dense


@dataclass(frozen=True)
class Settings:
    """What of the model's configuration a layer needs; the dropout is 0 in evaluation."""

    heads: int
    key_heads: int
    activation: Callable[[torch.Tensor], torch.Tensor]
    norm_eps: float
    attention_dropout: float
    kernels: Kernels
    window: None = None


def weights_of(layer: Any) -> Weights:
    attention, mlp = layer.self_attn, layer.mlp
    return Weights(
        *map(Dense.of, (layer.input_layernorm, attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)),
        *map(Dense.of, (layer.post_attention_layernorm, mlp.gate_proj, mlp.up_proj, mlp.down_proj)),
    )


def run(hidden: torch.Tensor, weights: Weights, pieces: Pieces, settings: Settings) -> torch.Tensor:
    """One layer: [T, D] -> [T, D]."""
    normed = rms_norm(hidden, weights.attention_norm, settings.norm_eps)
    hidden = hidden + self_attention(normed, weights, pieces, settings)
    return hidden + feed_forward(rms_norm(hidden, weights.mlp_norm, settings.norm_eps), weights, settings)


def self_attention(normed: torch.Tensor, weights: Weights, pieces: Pieces, settings: Settings) -> torch.Tensor:
    linear, rotary = settings.kernels.linear, pieces.rotary
    assert rotary is not None, "every layer has a theta"
    qkv = linear(normed, *joined((weights.query, weights.key, weights.value)))
    heads = qkv.view(len(normed), settings.heads + 2 * settings.key_heads, -1)
    turned = settings.kernels.rotate(heads, *rotary, settings.key_heads)
    return linear(attend(*turned, pieces, settings.attention_dropout).flatten(1), *weights.attention_output)


def feed_forward(normed: torch.Tensor, weights: Weights, settings: Settings) -> torch.Tensor:
    linear = settings.kernels.linear
    both = linear(normed, *joined((weights.gate, weights.up)))
    return linear(gated(both, settings.activation, settings.kernels), *weights.down)


def layer_settings(config: Any, kernels: Kernels, trains: bool) -> list[Settings]:
    settings = Settings(
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        activation=activation(config.hidden_act, kernels),
        norm_eps=config.rms_norm_eps,
        attention_dropout=config.attention_dropout if trains else 0.0,
        kernels=kernels,
    )
    return [settings] * config.num_hidden_layers


def set_fields(config: Any, values: Mapping[str, Any]) -> None:
    """What a phase sets, or stands beside `model.init`."""
    for name, value in values.items():
        if name == "rope_theta":
            config.rope_parameters = {**config.rope_parameters, "rope_theta": value}
        else:
            setattr(config, name, value)


def faults(tree: Mapping[str, Any]) -> Iterator[str]:
    """What of a config.json the lists below cannot say: groups of heads, and rotary frequencies for longer pieces."""
    sizes = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    if all(type(tree.get(key, 1)) is int and tree.get(key, 1) > 0 for key in sizes) and set(sizes[:2]) <= tree.keys():
        yield from head_faults(tree)
    rope = tree.get("rope_parameters")
    if rope is not None:
        yield from rope_faults(rope, "rope_parameters", tree, "rope_theta")
    if (old := tree.get("rope_scaling")) not in (None, {}, *DEFAULT_ROPE):
        yield f"rope_scaling is {old!r:.100} (computed: None)"
    mask = tree.get("mask_token_id", 0)
    if type(mask) is not int or mask < 0:
        yield f"mask_token_id is {mask!r:.100}, which is not an id"


add(
    Architecture(
        hf_class=EuroBertForMaskedLM,
        layer_class=EuroBertDecoderLayer,
        settings=EuroBert,
        description=Description(
            sizes=("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
            more_sizes=("max_position_embeddings", "num_key_value_heads", "head_dim"),
            ranges={
                "rms_norm_eps": (0.0, 1.0),
                "initializer_range": (0.0, 10.0),
                "rope_theta": (0.0, LARGEST_THETA),
            },
            choices={"hidden_act": ACTIVATIONS, **dict.fromkeys(("attention_bias", "mlp_bias"), (True, False))},
            harmless=frozenset({"classifier_pooling", "pretraining_tp", "rope_scaling"}),
            ids=("pad_token_id", "bos_token_id", "eos_token_id"),
            own=("rope_parameters", "mask_token_id"),
            faults=faults,
        ),
        token_ids=lambda tokenizer: {
            "pad_token_id": tokenizer.pad_id,
            "bos_token_id": tokenizer.cls_id,
            "eos_token_id": tokenizer.sep_id,
            "mask_token_id": tokenizer.mask_id,
        },
        longest_piece=lambda config: config.max_position_embeddings,
        embed=lambda model, batch: model.model.embed_tokens(batch.input_ids),
        layers=lambda model: model.model.layers,
        weights_of=weights_of,
        run=run,
        layer_settings=layer_settings,
        rope_thetas=lambda config: [config.rope_parameters["rope_theta"]] * config.num_hidden_layers,
        finish=lambda model, hidden: model.model.norm(hidden),
        transform=lambda model, hidden: hidden,
        stations=lambda model: (model.model.embed_tokens, model.model.norm),
        head_names=("lm_head.",),
        set_fields=set_fields,
    )
)
