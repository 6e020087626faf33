"""What is verified before anything is read by an index."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from maskloom.data.index.files import (
    COLUMNS,
    LISTS,
    corpus_digest,
    table_digest,
)
from maskloom.data.index.loading import load_index
from maskloom.data.reading.tars import LARGEST_BLOCK_BYTES
from maskloom.errors import UserError
from tests.fault_server import FaultServer

from .making import RECORD, index_here


def test_a_missing_shard_is_named(corpus: Path) -> None:
    (corpus / "1.tar").unlink()
    with pytest.raises(UserError, match=r"shard .*1\.tar, listed in .*index\.json, is missing"):
        load_index(corpus)


def test_a_shard_of_another_size_is_named(corpus: Path) -> None:
    data = (corpus / "1.tar").read_bytes()
    (corpus / "1.tar").write_bytes(data[:-RECORD])
    with pytest.raises(UserError, match=rf"shard .*1\.tar has {len(data) - RECORD} bytes, .* says {len(data)}"):
        load_index(corpus)


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
def test_remote_shards_are_checked_only_when_they_are_read(corpus: Path, url: str) -> None:
    header = json.loads((corpus / "index.json").read_text())
    header["shards"][0]["url"] = url
    (corpus / "index.json").write_text(json.dumps(header))
    index = load_index(corpus)
    assert index.place(0)[1] == url
    assert index.documents(3, "train") == ["a" * 700]  # of the other shard


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


def test_a_list_with_a_block_that_the_table_lacks_is_refused(corpus: Path) -> None:
    def change(header: dict, columns: dict) -> None:
        columns["train"][-1] = 99

    rewrite(corpus, change)
    with pytest.raises(UserError, match="does not fit"):
        load_index(corpus)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda file: file.symlink_to("/dev/zero")])
@pytest.mark.parametrize("name", ["index.json", "index/crc32.npy", "0.tar"])
def test_reading_never_hangs_on_what_is_not_a_file(corpus: Path, name: str, make: Callable[[Path], None]) -> None:
    """A pipe would be waited for, and a device be read without end."""
    (corpus / name).unlink()
    make(corpus / name)
    with pytest.raises(UserError, match=r"is not a file|no index at"):
        load_index(corpus)
    if name == "0.tar":
        with pytest.raises(UserError, match="is not a file"):
            index_here([corpus / name], corpus)


@pytest.mark.parametrize("url", ["", "b/" * 3000 + "0.tar", "n" * 300, "file:///a%00b.tar", "file://[::1/0.tar", "."])
def test_a_shard_at_an_impossible_place_is_refused(corpus: Path, url: str) -> None:
    rewrite(corpus, lambda header, columns: header["shards"][0].update(url=url))
    with pytest.raises(UserError, match=r"shard|URL|character 0"):
        load_index(corpus)


def test_a_block_larger_than_any_memory_is_refused(corpus: Path) -> None:
    def change(header: dict, columns: dict) -> None:
        header["shards"][0]["bytes"] = 1 << 60
        columns["length"][0] = LARGEST_BLOCK_BYTES + 1

    rewrite(corpus, change)
    with pytest.raises(UserError, match="lists blocks of more than 4,294,967,296 bytes"):
        load_index(corpus, finds_shards=False)


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


def test_a_remote_index_that_names_a_file_of_this_machine_is_refused(
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
