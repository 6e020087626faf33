"""The config.json of a ModernBERT: how it is read, and how it is written for releases 4 and 5 of Transformers.

    release 4    global_attn_every_n_layers    global_rope_theta, local_rope_theta
    release 5    layer_types                   rope_parameters, for each type of layer

Release 5 reads the old keys, and does not write them. We write both: without the old keys, release 4 would compute another model
and not say so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import ModernBertConfig

from maskloom.config_values import THETAS
from maskloom.models.base import Description
from maskloom.models.layers import ACTIVATIONS
from maskloom.models.rotary import DEFAULT_ROPE, rope_faults
from maskloom.redaction import brief
from maskloom.tokenizers.base import Tokenizer

GLOBAL, LOCAL = "full_attention", "sliding_attention"
MOST_LAYERS = 1 << 12


def token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """All five, because the defaults of the class are ids of one tokenizer."""
    first, last = tokenizer.cls_id, tokenizer.sep_id
    ends = {"bos_token_id": first, "cls_token_id": first, "eos_token_id": last, "sep_token_id": last}
    return {"pad_token_id": tokenizer.pad_id, **ends}


def set_fields(config: Any, values: Mapping[str, Any]) -> None:
    """Change a configuration: `Architecture.set_fields`."""
    for name, value in values.items():
        if name == "global_rope_theta":
            config.rope_parameters[GLOBAL] = {**config.rope_parameters[GLOBAL], "rope_theta": value}
        else:
            setattr(config, name, value)


def old_keys(config: Any) -> dict[str, Any]:
    """The keys that releases before 5 read. If these cannot express the order of layer types, one is None, so that such a release
    fails and does not compute another model."""
    every, layers = getattr(config, "global_attn_every_n_layers", None), list(config.layer_types)
    fitting = (each for each in (every, *range(1, len(layers) + 1)) if each and _types_of(each, len(layers)) == layers)
    return {
        "global_attn_every_n_layers": next(fitting, None),
        "global_rope_theta": config.rope_parameters[GLOBAL]["rope_theta"],
        "local_rope_theta": config.rope_parameters[LOCAL]["rope_theta"],
    }


def _types_of(every: int, layers: int) -> list[str]:
    return [LOCAL if number % every else GLOBAL for number in range(layers)]


def _faults(tree: Mapping[str, Any]) -> Iterator[str]:
    """Faults of the keys in `own` and `harmless`: what layers see, and their rotary frequencies."""
    yield from _layer_faults(tree)
    yield from _rope_faults(tree)
    if tree.get("local_attention") == 1:
        yield "local_attention is 1, and no slot would see another one (computed: 2 or more)"
    # The lists say what is wrong with sizes.
    with contextlib.suppress(LookupError, TypeError, ValueError, OverflowError, ZeroDivisionError):
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
        yield from rope_faults(kinds.get(kind, {}), f"rope_parameters.{kind}", tree, old_key)


DESCRIPTION = Description(
    sizes=("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    more_sizes=("max_position_embeddings", "local_attention"),
    ranges={
        "norm_eps": (0.0, 1.0),
        "initializer_range": (0.0, 10.0),
        "initializer_cutoff_factor": (0.0, 1e3),
        "global_rope_theta": THETAS,
        "local_rope_theta": THETAS,
    },
    choices={
        **dict.fromkeys(("hidden_activation", "classifier_activation"), ACTIVATIONS),
        **dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "classifier_bias", "decoder_bias"), (True, False)),
    },
    harmless=frozenset(
        {
            *("classifier_pooling", "classifier_dropout", "deterministic_flash_attn"),
            *("sparse_prediction", "sparse_pred_ignore_index", "reference_compile"),
            *("rope_scaling", "sliding_window", "head_dim"),
            # Hugging Face's class does not read these. Checkpoints that were converted from FlexBERT have them.
            *("rotary_emb_base", "rotary_emb_dim", "rotary_emb_interleaved", "rotary_emb_scale_base"),
            *("local_attn_rotary_emb_base", "local_attn_rotary_emb_dim"),
        }
    ),
    ids=("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"),
    own=("layer_types", "global_attn_every_n_layers", "rope_parameters"),
    faults=_faults,
)
