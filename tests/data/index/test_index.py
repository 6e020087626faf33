from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import math
import os
import pickle
import random
import shutil
import tarfile
import types
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from maskloom.data.index import index as module
from maskloom.data.index.files import Header, ShardSplit
from maskloom.data.index.index import (
    BLOCK,
    COLUMNS,
    LISTS,
    Index,
    Shard,
    Tokens,
    corpus_digest,
    held_out_threshold,
    load_index,
    table_digest,
    text_hash,
)
from maskloom.data.index.indexing import IndexedShard, check_shard, index_shard, index_tars, merge_indexes, write_index
from maskloom.data.reading import tars
from maskloom.data.reading.samples import tokens_member
from maskloom.data.reading.tars import LARGEST_BLOCK_BYTES
from maskloom.errors import DataFault, UserError
from maskloom.tokenizers.base import Tokenized
from maskloom.tokenizers.training import train_tokenizer
from tests.conftest import sentences
from tests.fault_server import FaultServer

RECORD = 512  # bytes: a tar is made of such records


def write_tar(path: Path, samples: list[dict[str, Any]]) -> Path:
    """A tar by webdataset; samples without a key are numbered."""
    with webdataset.TarWriter(str(path), mtime=0) as tar:
        for number, sample in enumerate(samples):
            tar.write({"__key__": f"{number:06d}"} | sample)
    return path


def index_here(
    paths: list[Path], folder: Path, *, block_bytes: int = 1000, split: ShardSplit = "train", fraction: float = 0.0
) -> Index:
    """What `index_tars` does, in this process."""
    threshold = held_out_threshold(fraction)
    indexed = [index_shard(path, block_bytes, "text", split, threshold) for path in paths]
    return write_index(folder, indexed, text_key="text", block_bytes=block_bytes, threshold=threshold)


def texts_of(index: Index, split: module.Split = "train") -> list[str]:
    return [text for block in range(index.header["blocks"]) for text in index.documents(block, split)]


def three_members(path: Path) -> tuple[list[str], list[int]]:
    """A tar of three documents, and where its members and its end-of-archive mark begin."""
    documents = ["a" * 700, "b" * 512, "c" * 10]
    write_tar(path, [{"txt": text} for text in documents])
    with tarfile.open(path) as tar:
        starts = [member.offset for member in tar]
    ends = starts[-1] + 2 * RECORD
    return documents, [*starts, ends]


@example([[6], [6]], 10)  # "0.0 xxxxxx" fills a block to the byte
@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 1500), min_size=1, max_size=3), min_size=1, max_size=8), st.integers(1, 4000))
def test_blocks_are_whole_samples_and_hold_every_document_once(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[list[int]], block_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("blocks")
    documents = [[f"{n}.{m} " + "x" * size for m, size in enumerate(sample)] for n, sample in enumerate(sizes)]
    path = write_tar(folder / "a.tar", [{f"{m}.txt": text for m, text in enumerate(sample)} for sample in documents])
    index = index_here([path], folder, block_bytes=block_bytes)
    assert texts_of(index) == [text for sample in documents for text in sample]
    offsets, lengths = index.columns["offset"].tolist(), index.columns["length"].tolist()
    assert offsets == [0, *np.cumsum(lengths)[:-1].tolist()]  # the blocks tile the shard
    blocks = [index.documents(block, "train") for block in range(len(offsets))]
    for block in blocks[:-1]:  # a block ends with the sample that fills it
        assert sum(len(text.encode()) for text in block) >= block_bytes
    for block in blocks:  # and with no later one
        last = block[-1].split(".")[0]
        assert sum(len(text.encode()) for text in block if text.split(".")[0] != last) < block_bytes
    whose = [{text.split(".")[0] for text in block} for block in blocks]
    assert sum(map(len, whose)) == len(set().union(*whose)) == len(sizes)


@pytest.mark.parametrize("kind", ["txt", "json", "jsonl", "dotted", "nested"])
def test_shards_by_webdatasets_writer(tmp_path: Path, kind: str) -> None:
    documents = [f"document {number} é" for number in range(20)]
    with webdataset.ShardWriter(str(tmp_path / "s-%06d.tar"), maxcount=6, verbose=0) as writer:
        for number, text in enumerate(documents):
            key = f"folder/{number:03d}" if kind == "nested" else f"{number:03d}"
            sample: dict[str, Any] = {"__key__": key}
            if kind == "json":
                sample["json"] = {"text": text, "id": number}
            elif kind == "jsonl":
                sample["jsonl"] = (json.dumps({"text": text}) + "\n").encode()
            elif kind == "dotted":
                sample = {"__key__": f"doc.{number}", "txt": text}  # to webdataset one sample, "doc"
            else:
                sample |= {"txt": text, "json": {"source": "metadata"}}
            writer.write(sample)
    paths = sorted(tmp_path.glob("*.tar"))
    assert len(paths) == math.ceil(20 / 6)
    index = index_here(paths, tmp_path)
    assert texts_of(index) == documents
    assert index.header["documents"] == 20
    assert index.header["text_bytes"] == sum(len(text.encode()) for text in documents)


def test_indexing_in_processes_is_the_same(tmp_path: Path) -> None:
    rng = random.Random(1)
    paths = [write_tar(tmp_path / f"{n}.tar", [{"txt": sentences(rng, 30)} for _ in range(9)]) for n in range(3)]
    here = index_here(paths, tmp_path / "here", split="by_hash", fraction=0.3)
    seen: list[int] = []
    there = index_tars(paths, tmp_path / "there", block_bytes=1000, fraction=0.3, processes=2, on_bytes=seen.append)
    assert here.digest == there.digest
    assert seen == [path.stat().st_size for path in paths]


def test_a_tar_cut_off_anywhere_is_refused_by_name(tmp_path: Path) -> None:
    """At a member's border, inside a header, inside data, at the mark of the end."""
    _, borders = three_members(tmp_path / "whole.tar")
    data = (tmp_path / "whole.tar").read_bytes()
    cuts = {place + shift for place in borders for shift in (-513, -512, -1, 0, 1, 100, 511)} | set(range(0, 3000, 97))
    path = tmp_path / "cut.tar"
    for cut in sorted(cuts & set(range(borders[-1] + 1))):
        path.write_bytes(data[:cut])
        with pytest.raises(UserError, match=r"cut\.tar"):
            index_here([path], tmp_path)


def test_a_damaged_header_is_refused_or_harmless(tmp_path: Path) -> None:
    """Never does a document go missing in silence: tarfile ends without a word at a header that it cannot read."""
    documents, borders = three_members(tmp_path / "whole.tar")
    data = (tmp_path / "whole.tar").read_bytes()
    path = tmp_path / "damaged.tar"
    refused = 0
    for place in range(borders[1], borders[1] + RECORD, 3):
        damaged = bytearray(data)
        damaged[place] ^= 0x04
        path.write_bytes(damaged)
        try:
            assert texts_of(index_here([path], tmp_path)) == documents
        except UserError as error:
            assert "damaged.tar" in str(error)
            refused += 1
    assert refused > 150  # the checksum covers every byte but its own padding


def test_a_header_of_zeros_inside_a_tar_is_refused(tmp_path: Path) -> None:
    _, borders = three_members(tmp_path / "zeros.tar")
    data = bytearray((tmp_path / "zeros.tar").read_bytes())
    data[borders[1] : borders[1] + RECORD] = bytes(RECORD)
    (tmp_path / "zeros.tar").write_bytes(data)
    with pytest.raises(UserError, match=r"zeros\.tar goes on after its end-of-archive mark"):
        index_here([tmp_path / "zeros.tar"], tmp_path)


def test_joined_tars_are_refused(tmp_path: Path) -> None:
    """Every reader, webdataset's as well, would leave the second out."""
    three_members(tmp_path / "one.tar")
    (tmp_path / "two.tar").write_bytes((tmp_path / "one.tar").read_bytes() * 2)
    with pytest.raises(UserError, match=r"two\.tar goes on after its end-of-archive mark"):
        index_here([tmp_path / "two.tar"], tmp_path)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, zstandard.compress])
def test_a_compressed_tar_is_refused(tmp_path: Path, compress: Any) -> None:
    three_members(tmp_path / "plain.tar")
    (tmp_path / "packed.tar").write_bytes(compress((tmp_path / "plain.tar").read_bytes()))
    with pytest.raises(UserError, match=r"packed\.tar is compressed.*decompress it first"):
        index_here([tmp_path / "packed.tar"], tmp_path)


def test_a_name_that_begins_like_a_compressed_file_is_a_name(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [{"__key__": "BZh0001", "txt": "text"}])
    assert texts_of(index_here([path], tmp_path)) == ["text"]


def test_a_shard_whose_name_has_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "10:00.tar", [{"txt": "text"}])
    assert texts_of(index_here([path], tmp_path)) == ["text"]
    monkeypatch.chdir(tmp_path)
    assert texts_of(index_here([Path("10:00.tar")], Path())) == ["text"]


@pytest.mark.parametrize("content", [b"", b"text\n" * 300, b"PK\x03\x04" + bytes(2000)])
def test_a_file_that_is_no_tar_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "not.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"shard .*not\.tar is"):
        index_here([tmp_path / "not.tar"], tmp_path)


@pytest.mark.parametrize("samples", [[], [{"jpg": b"\xff"}], [{"__key__": "__meta__/a", "txt": "a"}]])
def test_a_corpus_without_a_document_is_refused(tmp_path: Path, samples: list[dict[str, Any]]) -> None:
    path = write_tar(tmp_path / "a.tar", samples)
    with pytest.raises(UserError, match=r"no document for training in 1 shard\(s\)"):
        index_here([path], tmp_path)
    assert not (tmp_path / "index.json").exists()


def test_bad_text_names_shard_sample_and_place(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [{"txt": "good"}, {"txt": b"ab\xff"}])
    with pytest.raises(UserError, match=r"a\.tar, sample '000001'\.txt: not valid UTF-8 at byte 2"):
        index_here([path], tmp_path)


def test_documents_are_held_out_by_their_text(tmp_path: Path) -> None:
    rng, fraction, count = random.Random(2), 0.3, 1000
    documents = [sentences(rng, 5) for _ in range(count)]
    twice = [*documents, *(f"  {text}\n" for text in documents)]
    rng.shuffle(twice)
    path = write_tar(tmp_path / "a.tar", [{"jsonl": "\n".join(json.dumps({"text": t}) for t in twice).encode()}])
    index = index_here([path], tmp_path, split="by_hash", fraction=fraction)
    train, held_out = texts_of(index, "train"), texts_of(index, "validation")
    assert sorted(train + held_out) == sorted(twice)
    assert not {text.strip() for text in train} & {text.strip() for text in held_out}
    sigma = math.sqrt(count * fraction * (1 - fraction))
    assert abs(len(set(map(str.strip, held_out))) - count * fraction) < 5 * sigma
    assert (index.header["documents"], index.header["held_out_documents"]) == (len(train), len(held_out))


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=30), st.floats(0, 1))
def test_more_held_out_keeps_what_was_held_out(text: str, fraction: float) -> None:
    assert 0 <= text_hash(text) < 2**32
    assert held_out_threshold(fraction / 2) <= held_out_threshold(fraction) <= held_out_threshold(1.0) == 2**32
    assert held_out_threshold(0.0) == 0


def test_blocks_of_one_side_are_listed_for_that_side(tmp_path: Path) -> None:
    paths = [write_tar(tmp_path / f"{n}.tar", [{"txt": str(n)}]) for n in range(2)]
    indexed = [index_shard(paths[0], 1, "text", "train"), index_shard(paths[1], 1, "text", "validation")]
    index = write_index(tmp_path, indexed, text_key="text", block_bytes=1, threshold=5)
    assert index.train_blocks.tolist() == [0]
    assert index.held_out_blocks.tolist() == [1]
    assert (index.documents(0, "train"), index.documents(0, "validation")) == (["0"], [])
    assert (index.documents(1, "train"), index.documents(1, "validation")) == ([], ["1"])


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


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder with two shards of three documents and their index."""
    paths = [tmp_path / "0.tar", tmp_path / "1.tar"]
    for path in paths:
        three_members(path)
    index_here(paths, tmp_path, block_bytes=1)
    return tmp_path


def test_reading_finds_any_flipped_bit(corpus: Path) -> None:
    index = load_index(corpus)
    data = (corpus / "1.tar").read_bytes()
    rng = random.Random(3)
    for _ in range(40):
        offset, length = (int(index.columns[name][4]) for name in ("offset", "length"))
        damaged = bytearray(data)
        damaged[offset + rng.randrange(length)] ^= 1 << rng.randrange(8)
        (corpus / "1.tar").write_bytes(damaged)
        with pytest.raises(UserError, match=rf"1\.tar: the block at offset {offset} .*crc32"):
            load_index(corpus).documents(4, "train")
        assert load_index(corpus).documents(3, "train") == ["a" * 700]


def test_a_missing_shard_is_named(corpus: Path) -> None:
    (corpus / "1.tar").unlink()
    with pytest.raises(UserError, match=r"shard .*1\.tar, listed in .*index\.json, is missing"):
        load_index(corpus)


def test_a_shard_of_another_size_is_named(corpus: Path) -> None:
    data = (corpus / "1.tar").read_bytes()
    (corpus / "1.tar").write_bytes(data[:-RECORD])
    with pytest.raises(UserError, match=rf"shard .*1\.tar has {len(data) - RECORD} bytes, .* says {len(data)}"):
        load_index(corpus)


def test_a_shard_that_vanishes_while_it_is_read_is_named(corpus: Path) -> None:
    index = load_index(corpus)
    (corpus / "1.tar").unlink()
    with pytest.raises(UserError, match=r"1\.tar: No such file"):
        index.documents(3, "train")


@pytest.mark.parametrize("url", ["pipe:cat 0.tar", "gs://host/0.tar", "ssh:host", "sftp://host/0.tar"])
def test_shards_elsewhere_are_refused_by_scheme(corpus: Path, url: str) -> None:
    header = json.loads((corpus / "index.json").read_text())
    header["shards"][0]["url"] = url
    (corpus / "index.json").write_text(json.dumps(header))
    with pytest.raises(UserError, match=f"not '{url.partition(':')[0]}:'"):
        load_index(corpus)


@pytest.mark.parametrize("url", ["/etc/passwd", "../0.tar", "file:///0.tar"])
def test_a_place_that_the_header_names_holds_what_was_indexed_or_is_refused(corpus: Path, url: str) -> None:
    """URLs may change, for corpora move: size and checksums decide, and nothing is run."""
    header = json.loads((corpus / "index.json").read_text())
    header["shards"][0]["url"] = url
    (corpus / "index.json").write_text(json.dumps(header))
    with pytest.raises(UserError, match=r"is missing|bytes, .* says"):
        load_index(corpus)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/0.tar", "s3://bucket/0.tar"])
def test_remote_shards_are_met_when_they_are_read(corpus: Path, url: str) -> None:
    header = json.loads((corpus / "index.json").read_text())
    header["shards"][0]["url"] = url
    (corpus / "index.json").write_text(json.dumps(header))
    index = load_index(corpus)
    assert index.place(0)[1] == url
    assert index.documents(3, "train") == ["a" * 700]  # of the other shard


def test_another_number_of_documents_than_indexed_is_refused(corpus: Path) -> None:
    index = load_index(corpus)
    index.columns["documents"] = np.full(6, 2, dtype=np.int32)
    with pytest.raises(UserError, match=r"1 documents in the block at offset 0, the index says 2: index it again"):
        index.documents(0, "train")


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_that_changed_is_refused(corpus: Path, name: str) -> None:
    """A count that lost a bit would drop documents without a word."""
    file = corpus / "index" / f"{name}.npy"
    column = np.load(file)
    column[-1] ^= 1
    np.save(file, column)
    with pytest.raises(UserError, match="are not what was written together"):
        load_index(corpus)


def rewrite(corpus: Path, change: Callable[[dict, dict], None]) -> None:
    """Change header and columns and give them the digests that fit, as someone would who means harm."""
    header = json.loads((corpus / "index.json").read_text())
    columns = {name: np.load(corpus / "index" / f"{name}.npy") for name in [*COLUMNS, *LISTS]}
    change(header, columns)
    for name, column in columns.items():
        np.save(corpus / "index" / f"{name}.npy", column)
    columns = {name: columns[name] for name in COLUMNS}
    header["digest"] = corpus_digest(header, columns)
    header["table_digest"] = table_digest(header, columns)
    (corpus / "index.json").write_text(json.dumps(header))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shard", 99),
        ("shard", -1),
        ("offset", -512),
        ("offset", 1 << 40),
        ("offset", (1 << 63) - 1),
        ("length", 1 << 62),
        ("length", -5),
        ("length", 0),
        ("documents", -1),
        ("held_out", -1),
    ],
)
def test_blocks_that_no_shard_has_are_refused(corpus: Path, name: str, value: int) -> None:
    def change(header: dict, columns: dict) -> None:
        columns[name][0] = value

    rewrite(corpus, change)
    with pytest.raises(UserError, match="lists blocks"):
        load_index(corpus)


@pytest.mark.parametrize(
    "train",
    [
        [0, 1, 2, 3, 4, 4],
        [5, 4, 3, 2, 1, 0],
        [0, 1, 2, 3, 4],
        [-6, 1, 2, 3, 4, 5],
        [],
        [0, 1 << 30, (1 << 31) - 1, -(1 << 30), 4, 5],  # ascends, by differences in int32
    ],
)
def test_lists_of_blocks_that_do_not_fit_the_table_are_refused(corpus: Path, train: list[int]) -> None:
    """A list without a block would lose its documents, one that names a block twice would repeat them."""

    def change(header: dict, columns: dict) -> None:
        columns["train"] = np.asarray(train, dtype=np.int32)
        header["train_blocks"] = max(len(train), 1)

    rewrite(corpus, change)
    with pytest.raises(UserError, match="does not fit"):
        load_index(corpus)


def test_a_list_that_names_no_block_of_the_table_is_refused(corpus: Path) -> None:
    def change(header: dict, columns: dict) -> None:
        columns["train"][-1] = 99

    rewrite(corpus, change)
    with pytest.raises(UserError, match="does not fit"):
        load_index(corpus)


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
def test_a_column_that_is_no_array_of_numbers_is_refused_by_name(corpus: Path, what: str, name: str) -> None:
    (corpus / "index" / f"{name}.npy").write_bytes(COLUMN_FILES[what])
    with pytest.raises(UserError, match=rf"{name}\.npy.*write the index again"):
        load_index(corpus)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda file: file.symlink_to("/dev/zero")])
@pytest.mark.parametrize("name", ["index.json", "index/crc32.npy", "0.tar"])
def test_what_is_no_file_is_not_waited_for(corpus: Path, name: str, make: Callable[[Path], None]) -> None:
    """A pipe would be waited for, and a device be read without end."""
    (corpus / name).unlink()
    make(corpus / name)
    with pytest.raises(UserError, match=r"is not a file|no index at"):
        load_index(corpus)
    if name == "0.tar":
        with pytest.raises(UserError, match="is not a file"):
            index_here([corpus / name], corpus)


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


@pytest.mark.parametrize("url", ["", "b/" * 3000 + "0.tar", "n" * 300, "file:///a%00b.tar", "file://[::1/0.tar", "."])
def test_a_shard_at_an_impossible_place_is_refused(corpus: Path, url: str) -> None:
    rewrite(corpus, lambda header, columns: header["shards"][0].update(url=url))
    with pytest.raises(UserError, match=r"shard|URL|character 0"):
        load_index(corpus)


def test_a_block_that_no_memory_holds_is_refused(corpus: Path) -> None:
    def change(header: dict, columns: dict) -> None:
        header["shards"][0]["bytes"] = 1 << 60
        columns["length"][0] = LARGEST_BLOCK_BYTES + 1

    rewrite(corpus, change)
    with pytest.raises(UserError, match="lists blocks of more than 4,294,967,296 bytes"):
        load_index(corpus, finds_shards=False)


@pytest.mark.parametrize("alone", [True, False])
def test_text_that_the_tokenizer_cannot_encode_is_a_fault(
    tmp_path: Path, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its library panics, at one text or, not `alone`, at several together."""
    tokenizer = train_tokenizer([sentences(random.Random(1), 40)], 60)

    class PanicException(BaseException):  # as that of pyo3, which cannot be imported
        pass

    def panic(texts: list[str], add_special_tokens: bool) -> list[Any]:
        if any("zzpanic" in text for text in texts) and (alone or len(texts) > 1):
            raise PanicException("out of range")
        return [types.SimpleNamespace(ids=[7]) for _ in texts]

    write_tar(tmp_path / "0.tar", [{"txt": text} for text in ("good", "zzpanic", "good again")])
    index = index_here([tmp_path / "0.tar"], tmp_path, block_bytes=1 << 20)
    monkeypatch.setitem(tokenizer.__dict__, "_encoder", types.SimpleNamespace(encode_batch_fast=panic))
    which = "document 2 of 3" if alone else "one of the 3 documents"
    with pytest.raises(
        DataFault, match=rf"0\.tar: {which} for train in the block at offset 0: .*out of range"
    ) as fault:
        index.tokenized(0, "train", tokenizer)
    assert fault.value.kind == "tokens"
    assert fault.value.shard.endswith("0.tar")


def test_lack_of_memory_is_no_fault_of_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = train_tokenizer([sentences(random.Random(1), 40)], 60)

    def lack(texts: list[str], add_special_tokens: bool) -> list[Any]:
        raise MemoryError

    write_tar(tmp_path / "0.tar", [{"txt": "good"}])
    index = index_here([tmp_path / "0.tar"], tmp_path, block_bytes=1 << 20)
    monkeypatch.setitem(tokenizer.__dict__, "_encoder", types.SimpleNamespace(encode_batch_fast=lack))
    with pytest.raises(MemoryError):
        index.tokenized(0, "train", tokenizer)


@pytest.mark.parametrize("bad", [99, 1 << 20, (1 << 31) - 1, -1])
def test_token_ids_that_the_tokenizer_lacks_are_a_fault(tmp_path: Path, bad: int) -> None:
    """Not the model's, which would end with an index out of range on a GPU."""
    tokenizer: Any = types.SimpleNamespace(fingerprint="f", vocab_size=99, source="t")
    documents = Tokenized(np.asarray([5, 98, bad]), np.asarray([3]))
    data = tokens_member(documents, np.zeros(1, dtype=bool), 1 << 17)
    path = write_tar(tmp_path / "0.tar", [{"tokens": data}])
    size = path.stat().st_size
    rows = np.array([(0, size, 1, 0, zlib.crc32(path.read_bytes()))], dtype=BLOCK)
    entry = IndexedShard(Shard(str(path), size, hashlib.sha256(path.read_bytes()).hexdigest(), "train"), rows, 9)
    how: Any = {"text_key": "text", "block_bytes": 1, "threshold": 0, "digest": "0" * 64}
    index = write_index(tmp_path, [entry], tokens=Tokens("f"), **how)
    with pytest.raises(DataFault, match=rf"0\.tar: the block at offset 0 holds the token id {bad}, .* has 99") as fault:
        index.tokenized(0, "train", tokenizer)
    assert fault.value.kind == "tokens"
    tokenizer.vocab_size = 1 << 31
    if bad >= 0:
        assert index.tokenized(0, "train", tokenizer).ids.tolist() == [5, 98, bad]


def test_columns_of_an_unfinished_index_are_never_read_by_an_older_header(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = index_shard(corpus / "0.tar", 1, "text", "train")
    written: list[str] = []

    def save(file: Path, *arguments: Any, **options: Any) -> None:
        if len(written) == 3:
            raise OSError("No space left on device")
        written.append(str(file))
        real_save(file, *arguments, **options)

    real_save = np.save
    monkeypatch.setattr(np, "save", save)
    with pytest.raises(OSError, match="No space"):
        write_index(corpus, [entry], text_key="text", block_bytes=1, threshold=0)
    with pytest.raises(UserError, match="no index at"):
        load_index(corpus)


def one_member(path: Path, change: Callable[[tarfile.TarInfo], None], name: str = "0.txt") -> Path:
    """A tar of a good sample and one member that was changed."""
    with tarfile.open(path, "w") as tar:
        for member_name, altered in (("a.txt", False), (name, True)):
            member = tarfile.TarInfo(member_name)
            member.size = 4
            if altered:
                change(member)
            tar.addfile(member, io.BytesIO(b"text"))
    return path


def typed(kind: bytes) -> Callable[[tarfile.TarInfo], None]:
    def change(member: tarfile.TarInfo) -> None:
        member.type, member.linkname = kind, "a.txt"
        member.size = 0

    return change


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused_by_name(tmp_path: Path, kind: bytes) -> None:
    path = one_member(tmp_path / "a.tar", typed(kind))
    with pytest.raises(UserError, match=r"a\.tar: member '0\.txt' at byte 1024 is a link, a device or a sparse file"):
        index_here([path], tmp_path)


@pytest.mark.parametrize("name", ["/etc/a.txt", "../a.txt", "b/../../a.txt", "..\\a.txt", "b/..", "\\a\\..\\b.txt"])
def test_names_that_leave_the_tar_are_refused(tmp_path: Path, name: str) -> None:
    path = one_member(tmp_path / "a.tar", lambda member: None, name)
    with pytest.raises(UserError, match="names a place outside the tar"):
        index_here([path], tmp_path)


@pytest.mark.parametrize("name", ["./b.txt", "b/..c/d.txt", "b..txt"])
def test_names_that_only_look_so_are_read(tmp_path: Path, name: str) -> None:
    path = one_member(tmp_path / "a.tar", lambda member: None, name)
    assert texts_of(index_here([path], tmp_path)) == ["text", "text"]


def test_a_member_too_large_for_a_block_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "a.tar", [{"txt": "a" * 100}, {"txt": "b" * 101}])
    monkeypatch.setattr(tars, "LARGEST_MEMBER_BYTES", 100)
    with pytest.raises(UserError, match=r"member '000001\.txt' .* has 101 bytes, more than 100: .*split it"):
        index_here([path], tmp_path)


def test_folders_inside_a_tar_are_no_samples(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        folder = tarfile.TarInfo("b")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        member = tarfile.TarInfo("b/c.txt")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"text"))
    assert texts_of(index_here([tmp_path / "a.tar"], tmp_path)) == ["text"]


BAD_LINES = [b'{"text": "ab\xff"}', b'{"text": 3}', b"{", b'{"other": "a"}']


def test_documents_that_cannot_be_read_are_left_out_and_counted(tmp_path: Path) -> None:
    """When they are indexed and whenever they are read, so that nothing moves."""
    rng = random.Random(4)
    good = [sentences(rng, 8) for _ in range(60)]
    lines = [json.dumps({"text": text}).encode() for text in good]
    for place, bad in zip((0, 13, 40, 64), BAD_LINES, strict=True):
        lines.insert(place, bad)
    samples: list[dict[str, Any]] = [{"jsonl": b"\n".join(lines[i : i + 8])} for i in range(0, 64, 8)]
    samples += [{"txt": b"ab\xff"}, {"txt": "last"}]
    path = write_tar(tmp_path / "a.tar", samples)
    with pytest.raises(UserError, match=r"a\.tar, sample '000000'\.jsonl line 1: not valid UTF-8"):
        index_tars([path], tmp_path / "strict", block_bytes=1000)
    index = index_tars([path], tmp_path / "skipping", block_bytes=1000, fraction=0.3, skip_bad=True)
    kept = [*good, "last"]
    assert (index.header["bad_documents"], len(texts_of(index)) + len(texts_of(index, "validation"))) == (5, 61)
    assert sorted(texts_of(index) + texts_of(index, "validation")) == sorted(kept)
    assert texts_of(index) == [text for text in kept if text_hash(text) >= index.header["held_out_threshold"]]
    assert (index.header["documents"], index.header["held_out_documents"]) == (
        len(texts_of(index)),
        len(texts_of(index, "validation")),
    )
    assert index.header["text_bytes"] == sum(len(text.encode()) for text in kept)
    assert check_shard(index, 0) == []


def test_a_document_that_became_bad_later_is_a_fault_all_the_same(tmp_path: Path) -> None:
    """Leaving out what was bad when it was indexed must not hide what is bad since."""
    path = write_tar(tmp_path / "a.tar", [{"txt": "good"}, {"txt": b"ab\xff"}, {"txt": "fine"}])
    index = index_tars([path], tmp_path, block_bytes=1, skip_bad=True)
    with pytest.raises(DataFault, match="0 documents in the block at offset 0, the index says 1") as fault:
        index.documents(0, "train", io.BytesIO(path.read_bytes()[:1024].replace(b"good", b"g\xffod")))
    assert fault.value.kind == "count"


def test_a_pickled_index_is_opened_again(corpus: Path) -> None:
    index = load_index(corpus)
    data = pickle.dumps(index)
    assert len(data) < 2000  # no columns, no shards
    copy = pickle.loads(data)
    assert (copy.digest, copy.shards, copy.folder, copy.settings) == (
        index.digest,
        index.shards,
        index.folder,
        index.settings,
    )
    assert texts_of(copy) == texts_of(index)
    assert copy.train_blocks.tolist() == index.train_blocks.tolist()


def test_an_index_that_was_written_anew_meanwhile_is_refused(corpus: Path) -> None:
    data = pickle.dumps(load_index(corpus))
    index_here([corpus / "0.tar"], corpus, block_bytes=1)
    with pytest.raises(UserError, match="was written anew while it was in use: start again"):
        pickle.loads(data)
    (corpus / "index.json").unlink()
    with pytest.raises(UserError, match="no index at"):
        pickle.loads(data)


class TestMerge:
    def parts(self, folder: Path, **options: Any) -> list[Index]:
        rng = random.Random(6)
        parts = []
        for name, size in (("a", 7), ("b", 12)):
            (folder / name).mkdir()
            paths = [
                write_tar(folder / name / f"{n}.tar", [{"txt": sentences(rng, 30)} for _ in range(size)])
                for n in range(2)
            ]
            parts.append(index_here(paths, folder / name, **options))
        return parts

    def test_the_whole_holds_the_documents_of_its_parts(self, tmp_path: Path) -> None:
        one, other = self.parts(tmp_path, split="by_hash", fraction=0.3)
        merged = merge_indexes([one, other], tmp_path)
        for split in ("train", "validation"):
            assert texts_of(merged, split) == texts_of(one, split) + texts_of(other, split)  # type: ignore[arg-type]
        for key in ("documents", "held_out_documents", "text_bytes", "blocks", "train_blocks", "validation_blocks"):
            assert merged.header[key] == one.header[key] + other.header[key]
        assert [shard.url for shard in merged.shards] == ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]
        assert [check_shard(merged, number) for number in range(4)] == [[]] * 4

    def test_a_whole_that_moves_with_its_parts_is_the_same(self, tmp_path: Path) -> None:
        (tmp_path / "old").mkdir()
        merged = merge_indexes(self.parts(tmp_path / "old"), tmp_path / "old")
        texts = texts_of(merged)
        shutil.move(tmp_path / "old", tmp_path / "new")
        moved = load_index(tmp_path / "new")
        assert (moved.digest, texts_of(moved)) == (merged.digest, texts)

    def test_the_digest_depends_on_the_parts_and_their_order(self, tmp_path: Path) -> None:
        one, other = self.parts(tmp_path)
        wholes = [[one, other], [other, one], [one], [one, one]]
        digests = [merge_indexes(parts, tmp_path / str(n)).digest for n, parts in enumerate(wholes)]
        assert len({one.digest, other.digest, *digests}) == 6
        again = merge_indexes([one, other], tmp_path / "again")
        assert again.digest == digests[0]

    def test_parts_that_read_text_otherwise_are_refused(self, tmp_path: Path) -> None:
        one, other = self.parts(tmp_path)
        held_out = index_here([tmp_path / "a" / "0.tar"], tmp_path / "c", split="by_hash", fraction=0.5)
        with pytest.raises(UserError, match=r"c and .*a cannot be joined: --val-fraction 0\.5 .* --val-fraction 0 "):
            merge_indexes([one, held_out], tmp_path / "merged")
        other.header["tokens"] = {"tokenizer": "f"}
        with pytest.raises(UserError, match=r"token shards .* text shards"):
            merge_indexes([one, other], tmp_path / "merged")
        assert not (tmp_path / "merged").exists()


class TestCheck:
    def test_a_good_shard_has_no_fault(self, corpus: Path) -> None:
        index = load_index(corpus)
        assert [check_shard(index, number) for number in range(2)] == [[], []]

    def test_each_damaged_block_is_named(self, corpus: Path) -> None:
        index = load_index(corpus)
        data = bytearray((corpus / "1.tar").read_bytes())
        offsets = index.columns["offset"][3:].tolist()
        for offset in (offsets[0], offsets[2]):
            data[offset + 600 if offset == offsets[0] else offset] ^= 4
        (corpus / "1.tar").write_bytes(data)
        faults = check_shard(index, 1)
        assert [(fault.kind, fault.shard, fault.offset) for fault in faults] == [
            ("checksum", str(corpus / "1.tar"), offset) for offset in (offsets[0], offsets[2])
        ]
        assert check_shard(index, 0) == []

    def test_a_flipped_bit_between_the_blocks_is_found(self, corpus: Path) -> None:
        """No block holds the mark at the end of a tar."""
        index = load_index(corpus)
        data = bytearray((corpus / "0.tar").read_bytes())
        data[-1] ^= 1
        (corpus / "0.tar").write_bytes(data)
        (fault,) = check_shard(index, 0)
        assert fault.kind == "checksum"
        assert "its sha256 is not what was indexed" in str(fault)

    def test_a_shard_cut_short_and_one_that_is_gone(self, corpus: Path) -> None:
        index = load_index(corpus)
        offset = int(index.columns["offset"][1])
        path = corpus / "0.tar"
        path.write_bytes(path.read_bytes()[: offset + 100])
        faults = check_shard(index, 0)
        assert [fault.kind for fault in faults] == ["truncated"] * 3  # the shard, and the two blocks that it lost
        assert [fault.offset for fault in faults[1:]] == index.columns["offset"][1:3].tolist()
        path.unlink()
        (fault,) = check_shard(index, 0)
        assert (fault.kind, fault.shard) == ("missing", str(path))

    def test_a_shard_that_grew_is_another(self, corpus: Path) -> None:
        index = load_index(corpus)
        with (corpus / "0.tar").open("ab") as file:
            file.write(bytes(512))
        (fault,) = check_shard(index, 0)
        assert fault.kind == "changed"


def test_a_remote_index_read_while_it_was_uploaded_is_fetched_again(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies of columns that do not fit the header are never kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    column = corpus / "index" / "crc32.npy"
    good = column.read_bytes()
    old = np.load(column)
    old[0] ^= 1
    np.save(column, old)
    with FaultServer(corpus) as server:
        with pytest.raises(UserError, match="not what was written together"):
            load_index(server.url)
        column.write_bytes(good)
        digest = load_index(server.url).digest
        (copy,) = (tmp_path / "cache").rglob("crc32.npy")
        damaged = bytearray(copy.read_bytes())
        damaged[-1] ^= 1
        copy.write_bytes(damaged)
        assert load_index(server.url).digest == digest
        assert copy.read_bytes() == good


def test_a_remote_index_names_no_file_of_this_machine(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    header = json.loads((corpus / "index.json").read_text())
    header["shards"][0]["url"] = "/etc/passwd"
    (corpus / "index.json").write_text(json.dumps(header))
    with (
        FaultServer(corpus) as server,
        pytest.raises(UserError, match="is remote and lists the local shard /etc/passwd"),
    ):
        load_index(server.url)


def test_an_index_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text("[" * 200_000)
    with pytest.raises(UserError, match="not valid JSON"):
        load_index(tmp_path)
