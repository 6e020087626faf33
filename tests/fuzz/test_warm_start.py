"""What `model.init` names: config.json, the table of model.safetensors and the index of shards, as an enemy would write them.

The cheap checks, which parents and doctors run, see every input; the load of a tiny model sees fewer.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertForMaskedLM

from maskloom.config import MODELS, Bert
from maskloom.models.architecture import ARCHITECTURES
from maskloom.models.bert import BERT
from maskloom.models.build import build_model
from maskloom.models.description import COMPUTED, HARMLESS, check_description, parse_description
from maskloom.models.stored import stored_table, weight_files
from maskloom.models.warm_start import open_checkpoint
from maskloom.tokenizers.base import Tokenizer
from tests.fuzz.harness import fuzz
from tests.models.test_bert import tiny_config

NAME = "model.init here"
MEMORY_BYTES = 64 << 20
LOADING_BYTES = 256 << 20
KEYS = [
    json.dumps(key).encode()
    for key in (*BERT.description.kept, *COMPUTED, *sorted(HARMLESS), "auto_map", "rope_theta", "model_type")
]
VALUES = [b"true", b"false", b"{}", b"[]", b"-0.0", b"1e-12", b"NaN", b"-Infinity", b'"bert"', b'"gelu"', b'"../../x"']
TABLE = [
    b'"F32"',
    b'"F64"',
    b'"I8"',
    b'"F8_E4M3"',
    b'"BOOL"',
    b'"shape":[',
    b'"data_offsets":[',
    b'"__metadata__":',
    b"module.",
]
NAMES = [
    b"bert.",
    b"encoder.layer.0.",
    b"_orig_mod.",
    b".weight",
    b"model-00001-of-00006.safetensors",
    b"../",
    b"weight_map",
]


@pytest.fixture(scope="module")
def shards(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of several files."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("shards")
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = tiny_config(tokenizer.vocab_size, **{**shape, "max_position_embeddings": 16})
    BertForMaskedLM(config).save_pretrained(folder, max_shard_size="5KB")
    return folder


@pytest.fixture
def folder(shards: Path, tmp_path: Path) -> Path:
    """The same in one file."""
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(shards / "config.json", folder)
    weights = {name: part for file in shards.glob("*.safetensors") for name, part in load_file(file).items()}
    save_file(weights, folder / "model.safetensors")
    return folder


def written(path: Path, read: Callable[[], object]) -> Callable[[bytes], None]:
    """A parser of bytes: they are written to a file, and the file is read."""

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        read()

    parse.__qualname__ = f"{path.name} by {getattr(read, '__qualname__', 'a load')}"
    return parse


def test_config_json(shards: Path) -> None:
    data = (shards / "config.json").read_bytes()
    old = json.dumps(
        {
            **json.loads(data),
            "position_embedding_type": "absolute",
            "pruned_heads": {},
            "auto_map": {"AutoTokenizer": "t.T"},
        }
    ).encode()
    wide = json.dumps({**json.loads(data), "id2label": {str(n): f"LABEL_{n}" for n in range(9)}}).encode()

    def parse(data: bytes) -> None:
        check_description(parse_description(data, NAME), NAME)

    fuzz(parse, [data, old, wide], KEYS + VALUES, memory_bytes=MEMORY_BYTES)


LATER = [kind for kind in ARCHITECTURES if kind != "bert"]
"""Each of them with fewer inputs: most of the way is the same."""


@pytest.fixture(params=LATER)
def later(request: pytest.FixtureRequest, tokenizer: Tokenizer, tmp_path: Path) -> tuple[str, Path]:
    """A checkpoint of an architecture that came after BERT."""
    architecture = ARCHITECTURES[request.param]
    shape = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    torch.manual_seed(0)
    config = architecture.config(architecture.settings(**shape, max_position_embeddings=16), tokenizer)
    architecture.new(config).save_pretrained(tmp_path / "model")
    return request.param, tmp_path / "model"


def words_of(kind: str) -> list[bytes]:
    """Keys of an architecture's config.json, and beginnings of its weights' names."""
    architecture = ARCHITECTURES[kind]
    description = architecture.description
    keys = (*description.kept, *description.ids, *description.computed, *sorted(description.harmless))
    return [json.dumps(key).encode() for key in keys] + [name.encode() for name in architecture.head_names]


def test_config_json_of_later_architectures(later: tuple[str, Path]) -> None:
    kind, folder = later
    data = (folder / "config.json").read_bytes()

    def parse(data: bytes) -> None:
        check_description(parse_description(data, NAME), NAME)

    words = words_of(kind) + VALUES + [b"1e309", b"50283", b"[[]]", b'{"full_attention":{}}', b"null"]
    fuzz(parse, [data], words, inputs=300, memory_bytes=MEMORY_BYTES)


def test_the_table_of_later_architectures(later: tuple[str, Path]) -> None:
    kind, folder = later
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")

    def parse(table: bytes) -> None:
        path.write_bytes(len(table).to_bytes(8, "little") + table + data[8 + length :])
        open_checkpoint(str(folder), NAME)

    words = TABLE + NAMES + words_of(kind)
    fuzz(parse, [data[8 : 8 + length]], words, folder=folder, inputs=150, memory_bytes=MEMORY_BYTES)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_load_of_later_architectures(name: str, later: tuple[str, Path], tokenizer: Tokenizer) -> None:
    """With positions grown, so that this is read too."""
    kind, folder = later
    path = folder / name
    settings = MODELS[kind](init=str(folder), max_position_embeddings=40)
    parse = written(path, lambda: build_model(settings, tokenizer, 0))
    words = words_of(kind) + (VALUES if name == "config.json" else TABLE + NAMES)
    fuzz(parse, [path.read_bytes()], words, folder=folder, inputs=40, memory_bytes=LOADING_BYTES)


def test_the_table_of_safetensors(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")

    def parse(table: bytes) -> None:
        path.write_bytes(len(table).to_bytes(8, "little") + table + data[8 + length :])
        open_checkpoint(str(folder), NAME)

    fuzz(parse, [data[8 : 8 + length]], TABLE + NAMES, folder=folder, memory_bytes=MEMORY_BYTES)


def test_a_safetensors_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    parse = written(path, lambda: open_checkpoint(str(folder), NAME))
    fuzz(parse, [path.read_bytes()], TABLE + NAMES, folder=folder, memory_bytes=MEMORY_BYTES)


def test_the_index_of_shards(shards: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shards, tmp_path / "model")
    path = folder / "model.safetensors.index.json"
    whole = path.read_bytes()
    parse = written(path, lambda: weight_files(folder, NAME))
    fuzz(parse, [whole], NAMES + VALUES, folder=folder, memory_bytes=MEMORY_BYTES)
    parse = written(path, lambda: stored_table(folder, NAME))
    fuzz(parse, [whole], NAMES + VALUES, folder=folder, memory_bytes=MEMORY_BYTES, inputs=100)


def test_a_pickle(folder: Path) -> None:
    """Read by torch's unpickler of tensors alone: it may refuse, and must run nothing."""
    path = folder / "pytorch_model.bin"
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, path)
    zipped = path.read_bytes()
    torch.save(weights, path, _use_new_zipfile_serialization=False)
    parse = written(path, lambda: open_checkpoint(str(folder), NAME))
    words = [b"cos\nsystem\n", b"R.", b"cbuiltins\neval\n", b"\x85R", b"ctorch._utils\n_rebuild_tensor_v2\n"]
    fuzz(parse, [zipped, path.read_bytes()], words, folder=folder, inputs=200, memory_bytes=LOADING_BYTES)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_load(name: str, folder: Path, tokenizer: Tokenizer) -> None:
    path = folder / name
    parse = written(path, lambda: build_model(Bert(init=str(folder)), tokenizer, 0))
    words = KEYS + VALUES if name == "config.json" else TABLE + NAMES
    fuzz(parse, [path.read_bytes()], words, folder=folder, inputs=60, memory_bytes=LOADING_BYTES)
