"""`maskloom shards`: text in, shards with an index out, and the counts it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskloom.data.index import load_index

from .conftest import Command


def written(folder: Path) -> list[str]:
    """All documents of a corpus, white space at their ends aside, sorted."""
    index = load_index(folder)
    splits = (("train", index.train_blocks), ("validation", index.held_out_blocks))
    return sorted(
        text.strip() for split, blocks in splits for block in blocks for text in index.documents(int(block), split)
    )


@pytest.fixture
def source(documents: list[str], tmp_path: Path) -> Path:
    file = tmp_path / "text.jsonl"
    file.write_text("".join(json.dumps({"body": text}) + "\n" for text in documents))
    return file


def test_every_document_is_written_once(source: Path, documents: list[str], tmp_path: Path, succeeds: Command) -> None:
    out = tmp_path / "corpus"
    printed = succeeds("shards", source, out, "--text-key", "body", "--val-fraction", 0.2, "--processes", 1)
    assert written(out) == sorted(text.strip() for text in documents)
    header = load_index(out).header
    assert header["held_out_documents"] > 0
    assert f"{header['documents']:,} documents for training and {header['held_out_documents']:,} held out" in printed
    assert "0 empty documents left out, 0 long documents split, 0 exact duplicates kept" in printed


def test_text_files_are_documents_or_hold_some_between_blank_lines(tmp_path: Path, succeeds: Command) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "one.txt").write_text("first\n\nsecond\n")
    (folder / "two.txt").write_text("third")
    succeeds("shards", folder, tmp_path / "files", "--val-fraction", 0, "--processes", 1)
    assert written(tmp_path / "files") == ["first\n\nsecond", "third"]
    succeeds("shards", folder, tmp_path / "blank", "--blank-line", "--val-fraction", 0, "--processes", 1)
    assert written(tmp_path / "blank") == ["first", "second", "third"]


def test_duplicates_and_empty_documents_are_counted(tmp_path: Path, succeeds: Command) -> None:
    source = tmp_path / "text.jsonl"
    source.write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in ["same", "same", "", "  ", "other", "same"])
    )
    kept = succeeds("shards", source, tmp_path / "kept", "--val-fraction", 0, "--processes", 1)
    assert "2 empty documents left out" in kept
    assert "2 exact duplicates kept" in kept
    assert len(written(tmp_path / "kept")) == 4
    dropped = succeeds("shards", source, tmp_path / "dropped", "--deduplicate", "--val-fraction", 0, "--processes", 1)
    assert "2 exact duplicates dropped" in dropped
    assert len(written(tmp_path / "dropped")) == 2


def test_sizes_are_obeyed(source: Path, documents: list[str], tmp_path: Path, succeeds: Command) -> None:
    options = ("--text-key", "body", "--val-fraction", 0, "--processes", 1)
    succeeds("shards", source, tmp_path / "one", *options)
    succeeds("shards", source, tmp_path / "many", *options, "--shard-bytes", "64K", "--block-bytes", "4K")
    one, many = load_index(tmp_path / "one"), load_index(tmp_path / "many")
    assert len(one.shards) == 1
    assert len(many.shards) > 1
    assert len(many.train_blocks) > len(one.train_blocks)
    assert written(tmp_path / "many") == sorted(text.strip() for text in documents)


def test_a_folder_that_exists_is_refused(source: Path, tmp_path: Path, fails: Command) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    assert f"{out} exists" in fails("shards", source, out)
    assert not list(out.iterdir())


def test_bad_input_is_named_and_leaves_nothing(tmp_path: Path, fails: Command) -> None:
    source = tmp_path / "text.jsonl"
    source.write_text('{"text": "good"}\n{"text": 3}\n')
    message = fails("shards", source, tmp_path / "out", "--processes", 1)
    assert str(source) in message
    assert "'text' holds int, not text" in message
    assert [path.name for path in tmp_path.iterdir()] == ["text.jsonl"]


def test_an_input_that_is_missing_is_named(tmp_path: Path, fails: Command) -> None:
    assert "no file or folder" in fails("shards", tmp_path / "absent.txt", tmp_path / "out")


@pytest.mark.parametrize(
    "option", [("--val-fraction", "1"), ("--val-fraction", "x"), ("--shard-bytes", "many"), ("--processes", "0")]
)
def test_values_out_of_range_are_wrong_usage(
    option: tuple[str, str], source: Path, tmp_path: Path, succeeds: Command
) -> None:
    with pytest.raises(SystemExit, match="2"):
        succeeds("shards", source, tmp_path / "out", *option)
