"""ModernBERT (Warner et al., 2024): `ModernBertForMaskedLM`.

    hidden -> norm -> query, key, value in one product -> rotated -> attention within pieces, in most layers within a window
           -> dense -> dropout, + hidden
           -> norm -> two halves in one product -> activation of the first, times the second -> dropout -> dense, + hidden

The first layer has no norm before its attention, since the embeddings have one. Positions are angles alone (`rotary`).

Shapes: T slots, D hidden size, H heads, f feed-forward width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from transformers import ModernBertConfig, ModernBertForMaskedLM
from transformers.models.modernbert.modeling_modernbert import ModernBertEncoderLayer

from maskloom.config import ModernBert
from maskloom.data.batch import MicroBatch
from maskloom.models.attention import attend
from maskloom.models.base import Architecture, Description
from maskloom.models.kernels import Kernels
from maskloom.models.layers import ACTIVATIONS, Dense, Pieces, activation, gated, layer_norm
from maskloom.redaction import brief
from maskloom.tokenizers.base import Tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig

GLOBAL, LOCAL = "full_attention", "sliding_attention"
LARGEST_THETA = 1e12
MOST_LAYERS = 1 << 12
DEFAULT_ROPE = ({"rope_type": "default"}, {"type": "default"})
"""How a config.json says that nothing is done to the frequencies for longer pieces."""


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
    return hidden + _mlp(layer_norm(hidden, weights.mlp_norm, settings.norm_eps), weights, settings)


def _attention(hidden: torch.Tensor, weights: Weights, pieces: Pieces, settings: Settings) -> torch.Tensor:
    linear, rotary = settings.kernels.linear, pieces.rotary
    assert rotary is not None, "every layer has a theta"
    norm = weights.attention_norm
    normed = hidden if norm is None else layer_norm(hidden, norm, settings.norm_eps)
    qkv = linear(normed, *weights.qkv).view(len(hidden), 3, settings.heads, -1)
    context = attend(*settings.kernels.rotate(qkv, *rotary), pieces, settings.attention_dropout)
    # Hugging Face has one probability for the attention weights and for what comes out of them.
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


def _set_fields(config: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if name == "global_rope_theta":
            config.rope_parameters[GLOBAL] = {**config.rope_parameters[GLOBAL], "rope_theta": value}
        else:
            setattr(config, name, value)


def _old_keys(config: Any) -> dict[str, Any]:
    """What releases before 5 read. They do not know layer types of any order: then the None makes them fail, instead of computing
    another model."""
    every, layers = getattr(config, "global_attn_every_n_layers", None), list(config.layer_types)
    fitting = (each for each in (every, *range(1, len(layers) + 1)) if each and _types_of(each, len(layers)) == layers)
    return {
        "global_attn_every_n_layers": next(fitting, None),
        "global_rope_theta": config.rope_parameters[GLOBAL]["rope_theta"],
        "local_rope_theta": config.rope_parameters[LOCAL]["rope_theta"],
    }


def _types_of(every: int, layers: int) -> list[str]:
    return [LOCAL if number % every else GLOBAL for number in range(layers)]


# What a config.json may say


def _faults(tree: Mapping[str, Any]) -> Iterator[str]:
    """Of the keys that no list describes: what layers see, and their rotary frequencies."""
    yield from _layer_faults(tree)
    yield from _rope_faults(tree)
    with contextlib.suppress(LookupError, TypeError, ZeroDivisionError):  # the lists say what is wrong with sizes
        window = tree.get("local_attention", ModernBertConfig.local_attention) // 2
        for key, due in (("sliding_window", window), ("head_dim", _head_size(tree))):
            if tree.get(key) not in (None, due):
                yield f"{key} is {brief(tree[key])} (computed: {due}, by the other keys)"
        if _head_size(tree) % 2:
            yield f"a head has {_head_size(tree)} elements, and rotary positions turn pairs of them"


def _head_size(tree: Mapping[str, Any]) -> int:
    return int(tree["hidden_size"] // tree["num_attention_heads"])


def _layer_faults(tree: Mapping[str, Any]) -> Iterator[str]:
    layers, types, every = (tree.get(key) for key in ("num_hidden_layers", "layer_types", "global_attn_every_n_layers"))
    if type(layers) is int and layers > MOST_LAYERS:  # Hugging Face's configuration lists them
        yield f"num_hidden_layers is {layers}, more than {MOST_LAYERS:,}"
        return
    if every is not None and not (type(every) is int and every > 0):
        yield f"global_attn_every_n_layers is {brief(every)}, which is not a whole number from 1"
        return
    if types is None:
        if every is None and "global_attn_every_n_layers" in tree:
            yield "global_attn_every_n_layers is None, and there are no layer_types in its place"
        return
    if not isinstance(types, list):
        yield f"layer_types is {brief(types)}, which is not a list"
    elif odd := [each for each in types if each not in (GLOBAL, LOCAL)]:
        yield f"layer_types has {brief(odd[0])} (computed: {GLOBAL!r} or {LOCAL!r})"
    elif len(types) != layers:
        yield f"layer_types names {len(types)} layers, and num_hidden_layers is {brief(layers)}"
    elif every is not None and _types_of(every, len(types)) != types:
        yield f"global_attn_every_n_layers {every} and layer_types say different things of the layers: remove the wrong one"


def _rope_faults(tree: Mapping[str, Any]) -> Iterator[str]:
    if (old := tree.get("rope_scaling")) not in (None, {}, *DEFAULT_ROPE):
        yield f"rope_scaling is {brief(old)} (computed: None)"
    kinds = tree.get("rope_parameters")
    if kinds is None:
        return
    if not isinstance(kinds, dict) or not kinds.keys() <= {GLOBAL, LOCAL}:
        yield f"rope_parameters is {brief(kinds)} (computed: an object with {GLOBAL!r} and {LOCAL!r})"
        return
    for kind, old_key in ((GLOBAL, "global_rope_theta"), (LOCAL, "local_rope_theta")):
        rope = kinds.get(kind)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            yield f"rope_parameters.{kind} is {brief(rope)}, which is not an object"
            continue
        for key in sorted(rope.keys() - {"rope_theta"}):
            if {key: rope[key]} not in DEFAULT_ROPE:
                computed = "'default'" if key in ("rope_type", "type") else "no such key"
                yield f"rope_parameters.{kind} has {brief(key)}: {brief(rope[key])} (computed: {computed})"
        theta = rope.get("rope_theta", 1.0)
        if isinstance(theta, bool) or not isinstance(theta, int | float) or not 0 < theta < LARGEST_THETA:
            said = f"rope_parameters.{kind}.rope_theta is {brief(theta)}"
            yield f"{said}, which is not a number between 0 and {LARGEST_THETA:g}"
        elif "rope_theta" in rope and tree.get(old_key, theta) != theta:
            said = f"{old_key} is {brief(tree[old_key])}, and rope_parameters.{kind}.rope_theta is {theta}"
            yield f"{said}: remove the wrong one"


MODERNBERT = Architecture(
    hf_class=ModernBertForMaskedLM,
    layer_class=ModernBertEncoderLayer,
    settings=ModernBert,
    description=Description(
        sizes=("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
        more_sizes=("max_position_embeddings", "local_attention"),
        ranges={
            "norm_eps": (0.0, 1.0),
            "initializer_range": (0.0, 10.0),
            "initializer_cutoff_factor": (0.0, 1e3),
            "global_rope_theta": (0.0, LARGEST_THETA),
            "local_rope_theta": (0.0, LARGEST_THETA),
        },
        choices={
            **dict.fromkeys(("hidden_activation", "classifier_activation"), ACTIVATIONS),
            **dict.fromkeys(
                ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias", "decoder_bias"), (True, False)
            ),
        },
        harmless=frozenset(
            {
                *("classifier_pooling", "classifier_dropout", "deterministic_flash_attn"),
                *("sparse_prediction", "sparse_pred_ignore_index", "reference_compile"),
                *("rope_scaling", "sliding_window", "head_dim"),
            }
        ),
        ids=("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"),
        own=("layer_types", "global_attn_every_n_layers", "rope_parameters"),
        faults=_faults,
    ),
    token_ids=_token_ids,
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
    set_fields=_set_fields,
    old_keys=_old_keys,
)
