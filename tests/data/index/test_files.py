"""The files of an index, as anyone may have written them."""

from __future__ import annotations

import io
import json
import math
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskloom.data.index.files import (
    COLUMNS,
    Header,
)
from maskloom.data.index.loading import load_index
from maskloom.errors import UserError

from .making import index_here, texts_of, write_tar


def test_a_corpus_that_moved_is_the_same_and_another_is_not(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    path = write_tar(tmp_path / "a" / "0.tar", [{"txt": "text"}])
    first = index_here([path], tmp_path / "a")
    elsewhere = index_here([path], tmp_path / "elsewhere")
    shutil.move(tmp_path / "a", tmp_path / "b")
    moved = load_index(tmp_path / "b")
    assert first.digest == moved.digest == elsewhere.digest
    assert texts_of(moved) == ["text"]
    other = write_tar(tmp_path / "b" / "0.tar", [{"txt": "Text"}])
    assert index_here([other], tmp_path / "b").digest != first.digest
    split = index_here([other], tmp_path / "c", split="by_hash", fraction=1e-9)
    assert split.digest != index_here([other], tmp_path / "d").digest


HEADER_CHANGES = {
    "format": "other",
    "version": 1,
    "digest": "0" * 64,
    "table_digest": "0" * 64,
    "documents": 7,
    "held_out_documents": 1,
    "bad_documents": 1,
    "text_bytes": 1,
    "block_bytes": 2,
    "blocks": 5,
    "train_blocks": 5,
    "validation_blocks": 1,
    "text_key": "content",
    "held_out_threshold": 9,
    "tokens": {"tokenizer": "0" * 64},
}


@pytest.mark.parametrize("key", [*HEADER_CHANGES, "shards.bytes", "shards.sha256", "shards.split", "one shard less"])
def test_a_header_field_that_changed_is_refused(corpus: Path, key: str) -> None:
    header = json.loads((corpus / "index.json").read_text())
    if key in HEADER_CHANGES:
        assert header[key] != HEADER_CHANGES[key]
        header[key] = HEADER_CHANGES[key]
    elif key == "one shard less":
        header["shards"].pop()
    else:
        field = key.partition(".")[2]
        header["shards"][1][field] = {"bytes": 1, "sha256": "0" * 64, "split": "validation"}[field]
    (corpus / "index.json").write_text(json.dumps(header))
    with pytest.raises(UserError, match=r"index\.json.*(write the index again|maskloom index)"):
        load_index(corpus)


def test_every_header_field_was_looked_at(corpus: Path) -> None:
    header = json.loads((corpus / "index.json").read_text())
    assert header.keys() == Header.model_fields.keys() == {*HEADER_CHANGES, "shards"}
    assert header["shards"][0].keys() == {"url", "bytes", "sha256", "split"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("blocks", "6"),
        ("blocks", 6.5),
        ("blocks", 0),
        ("blocks", -6),
        ("documents", None),
        ("text_key", 3),
        ("shards", []),
        ("shards", [{"url": "a"}]),
        ("shards", {"0": "a"}),
        ("tokens", "yes"),
        ("tokens", {}),
        ("unheard_of", 1),
    ],
)
def test_a_header_field_of_another_kind_is_refused_by_its_name(corpus: Path, key: str, value: Any) -> None:
    header = json.loads((corpus / "index.json").read_text())
    header[key] = value
    (corpus / "index.json").write_text(json.dumps(header))
    with pytest.raises(UserError, match=rf"index\.json: {key}.*write the index again"):
        load_index(corpus)


@pytest.mark.parametrize("key", sorted(Header.model_fields.keys() - {"format", "version"}))
def test_a_header_without_a_key_is_refused_by_its_name(corpus: Path, key: str) -> None:
    header = json.loads((corpus / "index.json").read_text())
    del header[key]
    (corpus / "index.json").write_text(json.dumps(header))
    with pytest.raises(UserError, match=f"{key}: field required"):
        load_index(corpus)


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]", b"{}", b'{"format": "maskloom-index", "version": 99}'])
def test_a_header_that_cannot_be_used_is_refused_by_name(corpus: Path, content: bytes) -> None:
    (corpus / "index.json").write_bytes(content)
    with pytest.raises(UserError, match=r"index\.json is "):
        load_index(corpus)


def test_no_index_says_how_to_make_one(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none", tmp_path / "none" / "index.json"):
        with pytest.raises(UserError, match=r"no index at .*maskloom shards .*maskloom index"):
            load_index(path)


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_that_does_not_fit_is_refused_by_name(corpus: Path, name: str) -> None:
    file = corpus / "index" / f"{name}.npy"
    blocks = len(np.load(file))

    def refused() -> None:
        with pytest.raises(UserError, match=rf"{name}\.npy.*write the index again"):
            load_index(corpus)

    np.save(file, np.zeros(blocks - 1, dtype=COLUMNS[name]))
    refused()
    np.save(file, np.zeros(blocks, dtype=np.float64))
    refused()
    np.save(file, np.full(blocks, {}, dtype=object), allow_pickle=True)  # would run code when it is read
    refused()
    file.write_bytes(b"\x93NUMPY")
    refused()
    file.unlink()
    refused()


def npy(head: bytes, data: bytes = b"", version: bytes = b"\1\0") -> bytes:
    """A .npy file with any head."""
    return b"\x93NUMPY" + version + len(head).to_bytes(2 if version == b"\1\0" else 4, "little") + head + data


def described(descr: str, shape: str) -> bytes:
    return npy(f"{{'descr': {descr}, 'fortran_order': True, 'shape': {shape}, }}\n".encode(), bytes(24))


def archive() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, crc32=np.zeros(6, dtype=np.uint32))
    return stream.getvalue()


COLUMN_FILES = {
    "archive": archive(),
    "pickle": pickle.dumps(np.zeros(6)),
    "nothing": b"",
    "cut off": described("'<u4'", "(6,)")[:-1],
    "two axes": described("'<u4'", "(6, 1)"),
    "another byte order": described("'>u4'", "(6,)"),
    "more than any memory": described("'<u4'", "(1000000000000000,)"),
    "numbers without end": described("'<u4'", "(" + "9" * 4000 + ",)"),
    "a size below 0": described("'<u4'", "(-6,)"),
    "a size that is no number": described("'<u4'", "(6.0,)"),
    "a type of its own": described("[('a', '<u4')]", "(6,)"),
    "objects": described("'|O'", "(6,)"),
    "no type": described("'nonsense'", "(6,)"),
    "nested": npy(b"-" * 9000 + b"1\n"),
    "brackets": npy(b"(" * 9000 + b"\n"),
    "an open string": npy(b"{'descr': '''\n"),
    "indented": npy(b"1\n  2\n 3\n"),
    "a head of 4 GiB": b"\x93NUMPY\2\0\xff\xff\xff\xff{",
    "version 9": npy(b"{}", version=b"\x09\0"),
}


@pytest.mark.parametrize("name", ["crc32", "train", "validation"])
@pytest.mark.parametrize("what", COLUMN_FILES)
def test_a_column_that_is_not_an_array_of_numbers_is_refused_by_name(corpus: Path, what: str, name: str) -> None:
    (corpus / "index" / f"{name}.npy").write_bytes(COLUMN_FILES[what])
    with pytest.raises(UserError, match=rf"{name}\.npy.*write the index again"):
        load_index(corpus)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("blocks", 1 << 62),
        ("blocks", 10**300),
        ("documents", 1 << 63),
        ("text_bytes", -(10**30)),
        ("block_bytes", True),
        ("held_out_threshold", math.nan),
        ("held_out_threshold", math.inf),
        ("bad_documents", "0"),
        ("digest", "\ud800"),
        ("text_key", "a\0b"),
        ("tokens", {"tokenizer": ["a"]}),
        ("tokens", [["tokenizer", "a"]]),
        ("shards.bytes", 10**30),
        ("shards.bytes", 0),
        ("shards.bytes", 2048.0),
        ("shards.sha256", None),
        ("shards.sha256", "\udfff"),
        ("shards.split", "both"),
        ("shards.url", "a\0.tar"),
        ("shards.url", "\ud800.tar"),
        ("shards.url", ["0.tar"]),
    ],
)
def test_values_that_no_index_has_are_refused_by_name(corpus: Path, key: str, value: Any) -> None:
    header = json.loads((corpus / "index.json").read_text())
    (header["shards"][1] if "." in key else header)[key.rpartition(".")[2]] = value
    (corpus / "index.json").write_text(json.dumps(header))
    with pytest.raises(UserError, match=rf"index\.json: {key.replace('.', r'.*')}.*write the index again"):
        load_index(corpus)


def test_an_index_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text("[" * 200_000)
    with pytest.raises(UserError, match="not valid JSON"):
        load_index(tmp_path)
