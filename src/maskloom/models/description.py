"""What a Hugging Face config.json asks for, and whether our forward computes it.

A configuration is not taken on trust. An architecture's `Description` lists the keys that change what its model computes, with
the values that our forward computes; `COMPUTED` and `HARMLESS` are those that all models share. Any other value is refused by
name. A key in none of the lists that the installed configuration class knows is refused unless it has its default. A key that
this class does not know has no effect in Hugging Face either. It is ignored, unless it belongs to another architecture
(`FOREIGN`).

The configuration that is built holds what was checked and nothing else.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskloom.config import Model
from maskloom.errors import UserError
from maskloom.extensions import where_names_come_from
from maskloom.files import read_plain
from maskloom.models.architecture import ARCHITECTURES, known, unused_positions_of
from maskloom.models.base import Architecture

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MOST_BYTES = 16 << 20  # a config.json has a few kB, and with the names of many labels a few hundred
MOST_SIZE = 1 << 31

COMPUTED: dict[str, tuple[Any, ...]] = {
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True, False),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
}
"""The values that our forwards compute, of keys that all models share."""
HARMLESS = {
    *("architectures", "transformers_version", "dtype", "output_hidden_states", "return_dict", "use_cache"),
    *("id2label", "label2id", "problem_type"),
    "chunk_size_feed_forward",  # the same function in parts
    *("pad_token_id", "bos_token_id", "eos_token_id"),  # the tokenizer's are taken
}
"""Keys that change nothing about what is computed; dropouts are among them, for the run's are taken."""
FOREIGN = re.compile(
    r"alibi.*|rope.*|.*rotary.*|(use_)?sliding_window|(local_)?attention_window|attention_type|layer_types|per_layer_config"
    r"|encoder_ln_mode|feed_forward_type"
)
"""Keys of architectures that share names of weights with others: with them the model is another function."""
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 100


def read_description(folder: Path, name: str) -> PretrainedConfig:
    """The Hugging Face configuration in a folder's config.json. `name` is what messages call the folder.

    Raises:
        UserError: there is none, it is not JSON, or our forward does not compute what it describes.
    """
    return check_description(read_tree(folder, name), name)


def read_tree(folder: Path, name: str) -> dict[str, Any]:
    """The object in a folder's config.json, unchecked. Raises UserError if there is none."""
    path = folder / "config.json"
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{name}: config.json has {path.stat().st_size:,} bytes: no model has as many")
        data = read_plain(path)
    except UserError as error:
        raise UserError(f"{name} cannot be loaded: {error}") from None
    except OSError as error:
        raise UserError(f"{name} cannot be loaded: {path} cannot be read: {error.strerror}") from None
    return parse_description(data, name)


def parse_description(data: bytes, name: str) -> dict[str, Any]:
    """The object that a config.json holds. Raises UserError if it holds something else."""
    try:
        tree = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} cannot be loaded: its config.json is not JSON: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{name} cannot be loaded: its config.json holds {shown(tree)} instead of an object")
    return tree


def architecture_in(tree: Mapping[str, object], name: str) -> Architecture:
    """The architecture that a config.json names. Raises UserError if it is not known."""
    kind = tree.get("model_type")
    if kind is None:
        kind = _kind_by_classes(tree.get("architectures"))
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        are = "is" if len(ARCHITECTURES) == 1 else "are"
        raise UserError(f"{name} is a {shown(kind)} model: only {known()} {are} supported; {where_names_come_from()}")
    return ARCHITECTURES[kind]


def check_description(tree: Mapping[str, Any], name: str) -> PretrainedConfig:
    """The Hugging Face configuration that a config.json describes.

    Raises:
        UserError: our forward does not compute it, or it is none; all faults are listed.
    """
    architecture = architecture_in(tree, name)
    faults = [*_size_faults(tree, architecture), *_function_faults(tree, architecture)]
    if faults:
        raise UserError(
            f"{name}: its config.json describes a model that maskloom does not compute: {'; '.join(faults)}"
        )
    description = architecture.description
    kept = {key: tree[key] for key in description.kept if key in tree}
    kept |= {key: float(kept[key]) for key in description.ranges if key in kept}  # JSON may have 1 for 1.0
    kept |= {key: _token_id(tree.get(key), tree[architecture.own_name("vocab_size")]) for key in description.ids}
    config = architecture.config_class(**kept)
    if architecture.longest_piece(config) < 1:
        unused = unused_positions_of(config)
        raise UserError(
            f"{name}: its config.json has max_position_embeddings {config.max_position_embeddings}, which leaves no position "
            f"for a token: the first {unused:,} are before or at the padding token's id (pad_token_id)"
        )
    return config


def _token_id(given: object, vocab_size: int) -> int | None:
    """An id of a token as it is given; None if the vocabulary does not have it."""
    return given if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < vocab_size else None


def _kind_by_classes(classes: object) -> str:
    """The type of model by the names of its classes, for the first config.json files had no `model_type`."""
    if not classes:
        return str(Model.model_fields["architecture"].default)
    names = [str(each) for each in classes] if isinstance(classes, list) else [str(classes)]
    for kind, architecture in ARCHITECTURES.items():
        stem = architecture.hf_class.__name__.removesuffix("ForMaskedLM")
        if any(each.startswith(stem) for each in names):
            return kind
    return names[0]


def _size_faults(tree: Mapping[str, Any], architecture: Architecture) -> Iterator[str]:
    description = architecture.description
    faults = [f"{key} is missing" for key in description.sizes if key not in tree]
    faults += [
        f"{key} is {shown(tree[key])}, which is not a whole number from 1 to {MOST_SIZE - 1:,}"
        for key in (*description.sizes, *description.more_sizes)
        if key in tree and not (type(tree[key]) is int and 0 < tree[key] < MOST_SIZE)
    ]
    yield from faults
    width, heads = map(architecture.own_name, ("hidden_size", "num_attention_heads"))
    if not faults and tree[width] % tree[heads]:
        yield f"{width} {tree[width]} is not a multiple of {heads} {tree[heads]}"
    for key, (low, high) in description.ranges.items():
        value = tree.get(key, high / 2)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low < value < high:
            yield f"{key} is {shown(value)}, which is not a number between {low:g} and {high:g}"


def _function_faults(tree: Mapping[str, Any], architecture: Architecture) -> Iterator[str]:
    description = architecture.description
    computed = {**COMPUTED, **description.choices, **description.computed}
    for key, values in computed.items():
        if key in tree and not any(type(tree[key]) is type(value) and tree[key] == value for value in values):
            said = " or ".join(map(repr, values)) if len(values) <= 2 else f"one of {', '.join(values)}"
            yield f"{key} is {shown(tree[key])} (computed: {said})"
    yield from description.faults(tree)
    judged = {*description.kept, *computed, *HARMLESS, *description.harmless, *description.ids, *architecture.dropouts}
    defaults = _known_keys(architecture.config_class)
    for key in tree:
        if key in judged:
            continue
        if key == "auto_map":
            if code := _own_code(tree[key]):
                yield (
                    f"auto_map names code of its own, {code}, which is not run (if the model is Hugging Face's own, remove "
                    "auto_map)"
                )
        elif key in defaults:
            if type(tree[key]) is not type(defaults[key]) or tree[key] != defaults[key]:
                yield f"{key} is {shown(tree[key])}, of which maskloom knows nothing"
        elif FOREIGN.fullmatch(key) and tree[key] is not None and tree[key] is not False:
            yield f"{key} is {shown(tree[key])}, which no {shown(architecture.name)} model has"


def _own_code(auto_map: object) -> str:
    """The code by which `auto_map` replaces Hugging Face's own; empty if it names tokenizers alone."""
    if not isinstance(auto_map, dict):
        return shown(auto_map) if auto_map else ""
    return ", ".join(shown(code) for key, code in auto_map.items() if key.startswith(("AutoModel", "AutoConfig")))


def _known_keys(config_class: type[PretrainedConfig]) -> dict[str, object]:
    """The keys that the installed class of a configuration has, and their defaults."""
    return {field.name: field.default for field in dataclasses.fields(config_class)}


def shown(value: object) -> str:
    """A value from a file, short and without control characters."""
    return "NaN" if isinstance(value, float) and math.isnan(value) else SHORT.repr(value)
