"""`index.json` and its columns, as somebody may have written them."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskloom.data.index.corpus import Index
from maskloom.data.index.files import COLUMNS, corpus_digest, table_digest
from maskloom.data.index.indexing import check_shard, index_tars
from maskloom.data.index.loading import load_index
from maskloom.data.skew import note_on_sizes
from maskloom.errors import UserError

from .harness import fuzz

MEMORY_BYTES = 64 << 20
WORDS = [
    b'"url"',
    b'"../../etc/passwd"',
    b'"/dev/zero"',
    b'"file:///%00"',
    b'"file://[::1"',
    b'"http://[::1/a.tar"',
    b'"pipe:id"',
    b'"\\ud800"',
    b'"\\u0000"',
    b'"by_hash"',
    b'"validation"',
    b"[]",
    b"{}",
    b"true",
    b"-0",
    b"1.0",
    b"[" * 2000,
    b'{"a":' * 500,
    b"9" * 5000,
    b"9223372036854775807",
    b"4611686018427387903",
]
NPY_WORDS = [
    b"\x93NUMPY\1\0",
    b"\x93NUMPY\2\0",
    b"\x93NUMPY\3\0",
    b"PK\3\4",
    b"\x80\4\x95",
    b"'descr': '|O'",
    b"'descr': '<f8'",
    b"'<U9999999999'",
    b"'|V4'",
    b"[('a', '<u4'), ('b', '<u4')]",
    b"'fortran_order': True",
    b"(6, 6, 6)",
    b"(-6,)",
    b"(99999999999999999999,)",
    b"(1e9,)",
    b"()",
    b"(" * 400,
    b"-" * 400,
    b"lambda: 0",
    b"'''",
    b"\\N{",
]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two shards of three documents, each a block, half of them held out."""
    rng = np.random.default_rng(0)
    for number in range(2):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            for place in range(3):
                info = tarfile.TarInfo(f"{place}.txt")
                data = bytes(rng.integers(97, 122, 40 + 700 * place, dtype=np.uint8))
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    index_tars([tmp_path / "0.tar", tmp_path / "1.tar"], tmp_path, block_bytes=1, fraction=0.5)
    return tmp_path


def use(index: Index) -> None:
    """What is done with an index: every block is read or a fault, and its sizes are looked at."""
    note_on_sizes(index)
    for number in range(min(len(index.shards), 4)):
        check_shard(index, number)
    for block in range(min(index.header["blocks"], 4)):
        with contextlib.suppress(UserError):
            index.documents(block, "validation")


def test_the_header(corpus: Path) -> None:
    """Also as someone would write it who means harm: with the digest that fits."""
    file = corpus / "index.json"
    original = file.read_bytes()
    columns = {name: np.load(corpus / "index" / f"{name}.npy") for name in COLUMNS}

    def load(data: bytes) -> None:
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError, AttributeError):
            header: Any = json.loads(data)
            header["table_digest"] = table_digest(header, columns)
            data = json.dumps(header).encode()
        file.write_bytes(data)
        use(load_index(corpus))

    flat = json.dumps(json.loads(original)).encode()
    fuzz(load, [original, flat], WORDS, folder=corpus, memory_bytes=MEMORY_BYTES)


def test_values_of_the_header(corpus: Path) -> None:
    """One value of another kind or size in a header that is whole otherwise: what is mutated is the value."""
    file = corpus / "index.json"
    original = file.read_bytes()
    columns = {name: np.load(corpus / "index" / f"{name}.npy") for name in COLUMNS}

    def load(data: bytes) -> None:
        header = json.loads(original)
        try:
            *path, last, value = json.loads(data)
            place = header
            for key in path:
                place = place[key]
            place[last] = value
            header["table_digest"] = table_digest(header, columns)
        except (ValueError, KeyError, TypeError, IndexError, RecursionError, AttributeError):
            raise UserError("not a change of a header") from None
        file.write_text(json.dumps(header))
        use(load_index(corpus))

    header = json.loads(original)
    changes = [[key, value] for key, value in header.items() if key not in ("shards", "table_digest")]
    changes += [["shards", 0, key, value] for key, value in header["shards"][0].items()]
    fuzz(load, [json.dumps(change).encode() for change in changes], WORDS, folder=corpus, memory_bytes=MEMORY_BYTES)


@pytest.mark.parametrize("name", ["offset", "crc32", "train", "validation"])
def test_a_column(corpus: Path, name: str) -> None:
    file, header = corpus / "index" / f"{name}.npy", corpus / "index.json"
    values = json.loads(header.read_bytes())
    columns = {other: np.load(corpus / "index" / f"{other}.npy") for other in COLUMNS}

    def load(data: bytes) -> None:
        file.write_bytes(data)
        with contextlib.suppress(Exception):  # give it the digests that fit, if it is a column at all
            if name in COLUMNS:
                found = np.frombuffer(data, COLUMNS[name], offset=128)
                changed = {**values, "digest": corpus_digest(values, {**columns, name: found})}
                changed["table_digest"] = table_digest(changed, {**columns, name: found})
                header.write_text(json.dumps(changed))
        use(load_index(corpus))

    fuzz(load, [file.read_bytes()], NPY_WORDS, folder=corpus, inputs=200, memory_bytes=MEMORY_BYTES)
