"""What a Hugging Face config.json asks for, and whether our forward computes it.

A configuration is not taken on trust. `COMPUTED` lists, for every key that changes what a BERT computes, the values that
our forward computes; any other value is refused by name. Keys in `HARMLESS` change nothing about it. A key that the installed
`BertConfig` knows and that is in neither list is refused unless it has its default. A key that no `BertConfig` knows has
no effect in Hugging Face either, so it is passed over, unless it belongs to another architecture (`FOREIGN`).

The `BertConfig` that is built holds what was checked and nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import BertConfig

from maskloom.errors import UserError
from maskloom.files import read_plain

MOST_BYTES = 16 << 20  # a config.json has a few kB, and with the names of many labels a few hundred
MOST_SIZE = 1 << 31
MUST_HAVE = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
SIZES = (*MUST_HAVE, "max_position_embeddings", "type_vocab_size")

ACTIVATIONS = (
    *(
        "gelu",
        "gelu_new",
        "gelu_10",
        "gelu_accurate",
        "gelu_fast",
        "gelu_python",
        "gelu_python_tanh",
        "gelu_pytorch_tanh",
    ),
    *(
        "quick_gelu",
        "relu",
        "relu2",
        "relu6",
        "leaky_relu",
        "hardswish",
        "laplace",
        "linear",
        "mish",
        "sigmoid",
        "silu",
    ),
    *("sqrtsoftplus", "swish", "tanh"),
)
"""Those of Hugging Face's activations that have no parameters."""

COMPUTED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ACTIVATIONS,
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "position_embedding_type": ("absolute",),
    "tie_word_embeddings": (True, False),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
}
"""The values that our forward computes, of keys that have few."""
RANGES = {"layer_norm_eps": (0.0, 1.0), "initializer_range": (0.0, 10.0)}
"""Keys with a number: it lies strictly between these."""
HARMLESS = {
    *("architectures", "transformers_version", "dtype", "output_hidden_states", "return_dict", "use_cache"),
    *("id2label", "label2id", "problem_type", "classifier_dropout", "bos_token_id", "eos_token_id"),
    "pad_token_id",  # which row of the embeddings is not trained: the tokenizer's is taken
    "chunk_size_feed_forward",  # the same function in parts
    *("hidden_dropout_prob", "attention_probs_dropout_prob"),  # the run's are taken
}
FOREIGN = re.compile(
    r"alibi.*|rope.*|.*rotary.*|(use_)?sliding_window|(local_)?attention_window|attention_type|layer_types|per_layer_config"
    r"|encoder_ln_mode|feed_forward_type"
)
"""Keys of other architectures that keep BERT's weight names: BERT with them is another function."""
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 100
KEPT = (*SIZES, *RANGES, "hidden_act", "tie_word_embeddings")


def read_description(folder: Path, name: str) -> BertConfig:
    """The configuration in a folder's config.json. `name` is what messages call the folder.

    Raises:
        UserError: there is none, it is not JSON, or our forward does not compute what it describes.
    """
    path = folder / "config.json"
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{name}: config.json has {path.stat().st_size:,} bytes, which is no model's")
        data = read_plain(path)
    except UserError as error:
        raise UserError(f"{name} cannot be loaded: {error}") from None
    except OSError as error:
        raise UserError(f"{name} cannot be loaded: {path} cannot be read: {error.strerror}") from None
    return check_description(parse_description(data, name), name)


def parse_description(data: bytes, name: str) -> dict[str, Any]:
    """The object that a config.json holds. Raises UserError if it holds something else."""
    try:
        tree = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} cannot be loaded: its config.json is not JSON: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{name} cannot be loaded: its config.json holds {shown(tree)} in place of an object")
    return tree


def check_description(tree: Mapping[str, Any], name: str) -> BertConfig:
    """The configuration that a config.json describes.

    Raises:
        UserError: our forward does not compute it, or it is none; all faults are listed.
    """
    kind = tree.get("model_type")
    if kind is None:
        kind = _kind_by_classes(tree.get("architectures"))
    if kind != "bert":
        raise UserError(f"{name} is a {shown(kind)} model: only 'bert' is supported")
    faults = [*_size_faults(tree), *_function_faults(tree)]
    if faults:
        raise UserError(
            f"{name}: its config.json describes a model that maskloom does not compute: {'; '.join(faults)}"
        )
    kept = {key: tree[key] for key in KEPT if key in tree}
    return BertConfig(**kept | {key: float(kept[key]) for key in RANGES if key in kept})  # JSON may have 1 for 1.0


def _kind_by_classes(classes: Any) -> str:
    """The type of model by the names of its classes, for the first config.json files had no `model_type`."""
    if not classes:
        return "bert"
    names = [str(each) for each in classes] if isinstance(classes, list) else [str(classes)]
    return "bert" if any(each.startswith("Bert") for each in names) else names[0]


def _size_faults(tree: Mapping[str, Any]) -> list[str]:
    faults = [f"{key} is missing" for key in MUST_HAVE if key not in tree]
    faults += [
        f"{key} is {shown(tree[key])}, which is not a whole number from 1 to {MOST_SIZE - 1:,}"
        for key in SIZES
        if key in tree and not (type(tree[key]) is int and 0 < tree[key] < MOST_SIZE)
    ]
    if not faults and tree["hidden_size"] % tree["num_attention_heads"]:
        faults.append(
            f"hidden_size {tree['hidden_size']} is not a multiple of num_attention_heads {tree['num_attention_heads']}"
        )
    for key, (low, high) in RANGES.items():
        value = tree.get(key, high / 2)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low < value < high:
            faults.append(f"{key} is {shown(value)}, which is not a number between {low:g} and {high:g}")
    return faults


def _function_faults(tree: Mapping[str, Any]) -> list[str]:
    faults = []
    for key, values in COMPUTED.items():
        if key in tree and not any(type(tree[key]) is type(value) and tree[key] == value for value in values):
            computed = " or ".join(map(repr, values)) if len(values) <= 2 else f"one of {', '.join(values)}"
            faults.append(f"{key} is {shown(tree[key])} (computed: {computed})")
    for key in tree:
        if key in KEPT or key in COMPUTED or key in HARMLESS:
            continue
        if key == "auto_map":
            if code := _own_code(tree[key]):
                faults.append(
                    f"auto_map names code of its own, {code}, which is not run (if the model is BERT's own, remove auto_map)"
                )
        elif key in _known_keys():
            default = _known_keys()[key]
            if type(tree[key]) is not type(default) or tree[key] != default:
                faults.append(f"{key} is {shown(tree[key])}, of which maskloom knows nothing")
        elif FOREIGN.fullmatch(key) and tree[key] is not None and tree[key] is not False:
            faults.append(f"{key} is {shown(tree[key])}, which is not BERT's")
    return faults


def _own_code(auto_map: Any) -> str:
    """The code by which `auto_map` replaces Hugging Face's BERT; empty if it names tokenizers alone."""
    if not isinstance(auto_map, dict):
        return shown(auto_map) if auto_map else ""
    return ", ".join(shown(code) for key, code in auto_map.items() if key.startswith(("AutoModel", "AutoConfig")))


@functools.cache
def _known_keys() -> dict[str, Any]:
    """The keys that the installed `BertConfig` has, and their defaults."""
    return {field.name: field.default for field in dataclasses.fields(BertConfig)}


def shown(value: Any) -> str:
    """A value from a file, short and without control characters."""
    return "NaN" if isinstance(value, float) and math.isnan(value) else SHORT.repr(value)
