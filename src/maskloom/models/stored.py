"""Which weights a checkpoint folder holds, and what they are called: read from headers, without the weights.

    folder -> files (model.safetensors, its shards, or pickles of tensors) -> names, types, shapes -> BERT's names

A safetensors file begins with its table; of pickles torch reads the table alone, and nothing in them is run.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from transformers import BertConfig

from maskloom.errors import UserError
from maskloom.files import read_plain
from maskloom.models.description import MOST_BYTES, shown

SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch.compile, FSDP and activation checkpointing put before the name of a module that they wrap."""
BARE = ("embeddings.", "encoder.", "pooler.")
"""How the names begin in a checkpoint of `BertModel`, which has no `bert.` before them."""
ANCHOR = "embeddings.word_embeddings.weight"
OUTER = re.compile(r"((model|module|_forward_module)\.)+")
"""What frameworks put before the names of a whole model."""
POOLER = "bert.pooler."
"""Of Hugging Face's encoder what predicts no masked token."""
COUNTERS = ("bert.embeddings.position_ids", "bert.embeddings.token_type_ids")
"""What older checkpoints hold beside the weights: 0, 1, 2 ... and zeros."""


class Stored(NamedTuple):
    """A weight in a file."""

    dtype: str
    """As safetensors spells it."""
    shape: tuple[int, ...]
    name: str
    """As the file has it."""
    file: Path


def stored_weights(folder: Path, name: str) -> dict[str, Stored]:
    """The weights of a checkpoint folder, by the names that they have in BERT. `name` is what messages call the folder.

    Raises:
        UserError: there are none, a file is missing or damaged, or two weights have one name.
    """
    found: dict[str, Stored] = {}
    for path in weight_files(folder, name):
        for weight in _table(path, name):
            if other := found.get(weight.name):
                raise UserError(f"{name}: {printable(weight.name)} is in both {other.file.name} and {path.name}")
            found[weight.name] = weight
    named: dict[str, Stored] = {}
    for given, ours in berts_names(found).items():
        if ours in named:
            raise UserError(f"{name} holds {ours} twice: as {shown(named[ours].name)} and as {shown(given)}")
        named[ours] = found[given]
    return named


def weight_files(folder: Path, name: str) -> list[Path]:
    """The files with the weights: those that Hugging Face would take, safetensors before pickles."""
    for single in (SAFE, PICKLED):
        if (folder / single).is_file():
            return [folder / single]
        index = folder / f"{single}.index.json"
        if index.is_file():
            return _shards(index, name)
    raise UserError(f"{name} cannot be loaded: {why_no_weights(folder)}")


def why_no_weights(folder: Path) -> str:
    """What a folder without weights that can be loaded holds instead, and what to do."""
    names = sorted(path.name for path in folder.iterdir())
    if (folder / "config.yaml").is_file():
        return f"it is a run of maskloom. Write its model with `maskloom export {folder} FOLDER` and name that folder"
    if "adapter_config.json" in names:
        return "it is an adapter (PEFT, LoRA) without its model: merge the two, save the result, and name its folder"
    if any(each.startswith("model-") and each.endswith(".safetensors") for each in names):
        return f"it holds shards of the weights, and no {SAFE}.index.json, which lists them: fetch that file too"
    inside = [each for each in names if (folder / each / "config.json").is_file()]
    if inside:
        return f"the model is in {' or '.join(str(folder / each) for each in inside[:4])}: name that folder"
    formats = {
        ".gguf": "GGUF",
        ".onnx": "ONNX",
        ".h5": "TensorFlow",
        ".msgpack": "Flax",
        ".ckpt": "TensorFlow or Lightning",
    }
    other = {text for each in names for end, text in formats.items() if each.endswith(end) or f"{end}." in each}
    if (folder / "onnx").is_dir():
        other.add("ONNX")
    has = f"its weights are in {' and '.join(sorted(other))} alone" if other else "it holds no weights"
    return f"{has}: it needs {SAFE} (or {PICKLED}), as save_pretrained writes it"


def _shards(index: Path, name: str) -> list[Path]:
    """The files that an index lists, all of which exist."""
    try:
        if index.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has {index.stat().st_size:,} bytes")
        tree = json.loads(read_plain(index).decode("utf-8"))
        files = sorted(set(tree["weight_map"].values()))
        if not files or not all(isinstance(file, str) and file == Path(file).name for file in files):
            raise ValueError("its weight_map does not name files of its folder")
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError, OSError) as error:
        raise UserError(f"{name} cannot be loaded: {index.name} is damaged: {shown(str(error))}") from None
    paths = [index.parent / file for file in files]
    if absent := [path.name for path in paths if not os.path.isfile(path)]:  # noqa: PTH113 - pathlib raises for long names
        raise UserError(
            f"{name} cannot be loaded: {len(absent)} of {len(paths)} files that {index.name} lists are missing, such as "
            f"{shown(absent[0])}: fetch them too"
        )
    return paths


def _table(path: Path, name: str) -> Iterator[Stored]:
    """Names, types and shapes in one file."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="np") as file:
                for key in file.keys():  # noqa: SIM118 - it is not a dict
                    part = file.get_slice(key)
                    yield Stored(part.get_dtype(), tuple(part.get_shape()), key, path)
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{name} cannot be loaded: {path.name} is damaged: {error}") from None
        return
    types = {dtype: text for text, dtype in FLOATS.items()}
    for key, tensor in unpickled(path, name, "meta").items():
        yield Stored(types.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape), key, path)


def unpickled(path: Path, name: str, device: str) -> dict[str, torch.Tensor]:
    """The tensors of a pickle, by torch's unpickler of tensors alone. On the device "meta" they have no values."""
    try:
        found = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{name} holds a pickle of more than tensors, and was not loaded, for it could run any code: take a checkpoint "
            "with model.safetensors"
        ) from None
    except Exception as error:  # the library raises many kinds for a damaged file
        if "quantized" in str(error):  # torch cannot make such tensors without their values
            raise UserError(
                f"{name} cannot be loaded: {path.name} holds quantised tensors: take a checkpoint that is not quantised"
            ) from None
        raise UserError(f"{name} cannot be loaded: {path.name} is damaged: {error}") from None
    if not isinstance(found, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in found.items()
    ):
        raise UserError(f"{name} cannot be loaded: {path.name} does not hold tensors by name")
    for key, tensor in found.items():
        if tensor.layout != torch.strided:
            layout = str(tensor.layout).removeprefix("torch.")
            raise UserError(
                f"{name} cannot be loaded: {printable(key)} in {path.name} is a sparse tensor ({layout}): save it with its "
                "zeros, by to_dense()"
            )
    return found


def berts_names(names: Iterable[str]) -> dict[str, str]:
    """Names in a file -> names in `BertForMaskedLM`: wrappers go, and old and bare names become today's."""
    plain = {}
    for name in names:
        ours = name
        for wrapper in WRAPPERS:
            ours = ours.replace(wrapper, "")
        while ours.startswith("module."):
            ours = ours.removeprefix("module.")
        for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
            if ours.endswith(old):
                ours = ours.removesuffix(old) + new
        plain[name] = ours
    if prefix := _outer_prefix(plain.values()):
        plain = {name: ours.removeprefix(prefix) for name, ours in plain.items()}
    if not any(ours.startswith("bert.") for ours in plain.values()):
        plain = {name: f"bert.{ours}" if ours.startswith(BARE) else ours for name, ours in plain.items()}
    return plain


def _outer_prefix(names: Collection[str]) -> str:
    """What stands before BERT's names, if that is one thing: the name of a model of which BERT is a part. Without `bert.` behind
    it, only a wrapper's: RoBERTa's names differ from BERT's by the prefix alone."""
    prefixes = {name.removesuffix(ANCHOR) for name in names if name.endswith(ANCHOR)}
    if len(prefixes) != 1:
        return ""
    prefix = prefixes.pop()
    outer = prefix.removesuffix("bert.")
    is_part = outer == "" or outer.endswith(".")
    return outer if is_part and (outer != prefix or OUTER.fullmatch(outer)) else ""


def encoder_weights(config: BertConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every weight of the encoder, layer by layer."""
    hidden, wide = config.hidden_size, config.intermediate_size
    rows = {"word": config.vocab_size, "position": config.max_position_embeddings, "token_type": config.type_vocab_size}
    for kind, count in rows.items():
        yield f"bert.embeddings.{kind}_embeddings.weight", (count, hidden)
    yield from _pair("bert.embeddings.LayerNorm", (hidden,))
    for number in range(config.num_hidden_layers):
        layer = f"bert.encoder.layer.{number}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            yield from _pair(f"{layer}.attention.{part}", (hidden, hidden))
        yield from _pair(f"{layer}.attention.output.LayerNorm", (hidden,))
        yield from _pair(f"{layer}.intermediate.dense", (wide, hidden))
        yield from _pair(f"{layer}.output.dense", (hidden, wide))
        yield from _pair(f"{layer}.output.LayerNorm", (hidden,))


def head_weights(config: BertConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every weight of the head for masked tokens, those that are tied included."""
    yield from _pair("cls.predictions.transform.dense", (config.hidden_size, config.hidden_size))
    yield from _pair("cls.predictions.transform.LayerNorm", (config.hidden_size,))
    yield from _pair("cls.predictions.decoder", (config.vocab_size, config.hidden_size))
    yield "cls.predictions.bias", (config.vocab_size,)


def _pair(module: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{module}.weight", shape
    yield f"{module}.bias", shape[:1]


def summary(keys: Iterable[str]) -> str:
    """Weight names, shortened to the modules they belong to: `cls.seq_relationship.*`."""
    modules = sorted({".".join(key.split(".")[:-1][:2]) + ".*" if "." in key else key for key in keys})
    listed = ", ".join(map(printable, modules[:MOST_NAMED]))
    return f"{listed} and {len(modules) - MOST_NAMED} more" if len(modules) > MOST_NAMED else listed


def printable(name: str) -> str:
    """A name from a file, for a message."""
    return name if name.isprintable() and len(name) <= MOST_CHARS else shown(name)


MOST_NAMED, MOST_CHARS = 20, 200
