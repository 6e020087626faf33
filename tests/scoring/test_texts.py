"""What is read, and the sample of it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from maskloom.data.index.loading import load_index
from maskloom.data.writing.passes import Options
from maskloom.data.writing.shards import write_shards
from maskloom.errors import UserError
from maskloom.scoring.texts import read_texts, sample


def test_files_of_several_kinds(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("first\n\nsecond")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"body": "third"}\n{"body": "fourth"}\n'))
    found = read_texts([str(tmp_path)], "body", "blank-line", 10, 0)
    assert found.documents == ["first", "second", "third", "fourth"]
    assert found.found == 4


def test_of_a_corpus_what_it_holds_out(corpus_dir: Path, documents: list[str]) -> None:
    found = read_texts([str(corpus_dir)], "text", "file", 10_000, 0)
    index = load_index(corpus_dir)
    assert found.found == len(found.documents) == index.header["held_out_documents"] > 0
    trained = {text for block in index.train_blocks for text in index.documents(int(block), "train")}
    assert set(found.documents) <= {text.strip() for text in documents} - trained


def test_a_corpus_that_holds_nothing_out(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("river and tree")
    write_shards([str(tmp_path / "text.txt")], tmp_path / "corpus", Options(val_fraction=0.0))
    with pytest.raises(UserError, match=r"holds no held-out documents. Name files of text"):
        read_texts([str(tmp_path / "corpus")], "text", "file", 10, 0)


def test_no_text(tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": " \n"}) + "\n")
    with pytest.raises(UserError, match="there is no text in"):
        read_texts([str(tmp_path / "text.jsonl")], "text", "file", 10, 0)


def test_a_sample_does_not_depend_on_the_order() -> None:
    texts = [f"document {number}" for number in range(200)]
    found = sample(texts, 20, 0)
    assert (len(found.documents), found.found) == (20, 200)
    assert found.documents == sorted(found.documents, key=texts.index)
    assert set(sample(reversed(texts), 20, 0).documents) == set(found.documents)
    assert set(sample(texts, 20, 1).documents) != set(found.documents)


def test_a_long_document_is_split() -> None:
    text = "a line of some length\n" * 10_000
    found = sample([text], 10, 0)
    assert found.found == len(found.documents) > 1
    assert "".join("".join(found.documents).split()) == "".join(text.split())
