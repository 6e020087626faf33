"""Which weights a checkpoint folder holds, and what they are called: read from headers, without the weights.

    folder -> files (model.safetensors, its shards, or pickles of tensors) -> names, types, shapes -> Hugging Face's names

A safetensors file begins with its table; of pickles torch reads the table alone, and nothing in them is run.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from maskloom.errors import UserError
from maskloom.files import read_plain
from maskloom.models.description import MOST_BYTES, shown

SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch.compile, FSDP and activation checkpointing put before the name of a module that they wrap."""
OUTER = re.compile(r"((model|module|_forward_module)\.)+")
"""What frameworks put before the names of a whole model."""


class Stored(NamedTuple):
    """A weight in a file."""

    dtype: str
    """As safetensors spells it."""
    shape: tuple[int, ...]
    name: str
    """As the file has it."""
    file: Path


def stored_table(folder: Path, name: str) -> dict[str, Stored]:
    """The weights of a checkpoint folder, by their names in its files. `name` is what messages call the folder.

    Raises:
        UserError: there are none, a file is missing or damaged, or two weights have one name.
    """
    found: dict[str, Stored] = {}
    for path in weight_files(folder, name):
        for weight in _table(path, name):
            if other := found.get(weight.name):
                raise UserError(f"{name}: {printable(weight.name)} is in both {other.file.name} and {path.name}")
            found[weight.name] = weight
    return found


def renamed(found: Mapping[str, Stored], names: Names, name: str) -> dict[str, Stored]:
    """The weights of a checkpoint by Hugging Face's names. Raises UserError if two have one name."""
    named: dict[str, Stored] = {}
    for given, ours in names.of(found).items():
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


class Names(NamedTuple):
    """How weights are called in Hugging Face's model, and what files may call them instead.

    Attributes:
        prefix: of the encoder's names: `bert.`.
        parts: what follows it in a name: `embeddings.`, `encoder.`. In a checkpoint of the encoder alone, names begin so.
        anchor: name of the embeddings behind the prefix, by which a prefix of another model's is found.
        old_endings: see `Architecture`.
    """

    prefix: str
    parts: tuple[str, ...]
    anchor: str
    old_endings: Mapping[str, str]

    def of(self, names: Iterable[str]) -> dict[str, str]:
        """Names in a file -> names in Hugging Face's model: wrappers go, and old and bare names become today's."""
        plain = {}
        for name in names:
            ours = name
            for wrapper in WRAPPERS:
                ours = ours.replace(wrapper, "")
            while ours.startswith("module."):
                ours = ours.removeprefix("module.")
            for old, new in self.old_endings.items():
                if ours.endswith(old):
                    ours = ours.removesuffix(old) + new
            plain[name] = ours
        if prefix := self._outer_prefix(plain.values()):
            plain = {name: ours.removeprefix(prefix) for name, ours in plain.items()}
        if not any(ours.startswith(self.prefix) for ours in plain.values()):
            plain = {
                name: f"{self.prefix}{ours}" if ours.startswith(self.parts) else ours for name, ours in plain.items()
            }
        return plain

    def _outer_prefix(self, names: Collection[str]) -> str:
        """What stands before Hugging Face's names, if that is one thing: the name of a model of which this one is a part.

        Without the encoder's prefix behind it, only a wrapper's: RoBERTa's names differ from BERT's by the prefix alone.
        """
        prefixes = {name.removesuffix(self.anchor) for name in names if name.endswith(self.anchor)}
        if len(prefixes) != 1:
            return ""
        prefix = prefixes.pop()
        outer = prefix.removesuffix(self.prefix)
        is_part = outer == "" or outer.endswith(".")
        return outer if is_part and (outer != prefix or OUTER.fullmatch(outer)) else ""


def summary(keys: Iterable[str]) -> str:
    """Weight names, shortened to the modules they belong to: `cls.seq_relationship.*`."""
    modules = sorted({".".join(key.split(".")[:-1][:2]) + ".*" if "." in key else key for key in keys})
    listed = ", ".join(map(printable, modules[:MOST_NAMED]))
    return f"{listed} and {len(modules) - MOST_NAMED} more" if len(modules) > MOST_NAMED else listed


def printable(name: str) -> str:
    """A name from a file, for a message."""
    return name if name.isprintable() and len(name) <= MOST_CHARS else shown(name)


MOST_NAMED, MOST_CHARS = 20, 200
