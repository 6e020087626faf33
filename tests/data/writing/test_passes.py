"""What the two passes make of documents: shuffled, cut, counted, on the side of their hash."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.data.index.corpus import Index
from maskloom.data.writing import passes
from maskloom.data.writing.passes import Options, split_document
from maskloom.data.writing.shards import write_shards
from tests.conftest import sentences

from .making import SMALL, files_of, texts_of, write_jsonl


def test_documents_are_shuffled_over_shards(index: Index, documents: list[str]) -> None:
    train = texts_of(index)
    kept = set(train)
    assert train != [text.strip() for text in documents if text.strip() in kept]


def test_empty_documents_are_dropped_long_ones_split_and_copies_counted(tmp_path: Path) -> None:
    """A document of 3 MB is cut, "[MASK]" stays text, empty ones are counted, and copies are dropped if asked."""
    rng = random.Random(5)
    words = [str(rng.randrange(10**8)) for _ in range(360_000)]
    long = "\n\n".join(" ".join(words[start : start + 100]) for start in range(0, len(words), 100))
    assert len(long) > 3_000_000
    special = "a literal [MASK] and [SEP] é"
    path = write_jsonl(tmp_path / "a.jsonl", [long, special, special, " \n", "", "last\u2028line"])
    options = Options(val_fraction=0, longest_document_bytes=64 * 1024)
    told: list[Any] = []

    def on_stage(name: str, total: float) -> Callable[[float], None]:
        told.append((name, total))
        return told.append

    index, report = write_shards([str(path)], tmp_path / "kept", options, on_stage=on_stage)
    assert told == [("reading", path.stat().st_size), path.stat().st_size, ("writing", 1), 1]
    documents = texts_of(index)
    parts = [text for text in documents if text not in (special, "last\u2028line")]
    assert sorted(word for part in parts for word in part.split()) == sorted(words)
    assert all(len(part.encode()) <= options.longest_document_bytes for part in parts)
    assert documents.count(special) == 2
    assert (report.documents, report.empty, report.split, report.duplicates) == (4, 2, 1, 1)
    assert (report.longest_bytes, report.longest) == (len(long), f"{path}, the line at byte 0")
    assert report.pieces == len(documents) == len(parts) + 3
    index, report = write_shards(
        [str(path)], tmp_path / "dropped", Options(**vars(options) | {"deduplicate": True}), processes=2
    )
    assert sorted(texts_of(index)) == sorted({*documents})
    assert (report.duplicates, report.dropped) == (1, True)


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("ab \n\té€😀\u3000"), max_size=300), st.integers(4, 60))
def test_splitting_loses_nothing_but_white_space_at_the_cuts(text: str, longest: int) -> None:
    text = text.strip()
    parts = split_document(text, longest)
    assert all(0 < len(part.encode()) <= longest for part in parts)
    place = 0
    for part in parts:  # the parts stand in the text in their order, and between them there is white space only
        found = text.index(part, place)
        assert not text[place:found].strip()
        place = found + len(part)
    assert not text[place:].strip()
    assert len(text.encode()) > longest or parts == ([text] if text else [])


def test_splitting_prefers_paragraphs_then_lines_then_words() -> None:
    assert split_document("aaaa bb\ncccc\n\ndd ee\nf", 16) == ["aaaa bb\ncccc", "dd ee\nf"]
    assert split_document("aaaa bb\ncc dddd eee", 12) == ["aaaa bb", "cc dddd eee"]
    assert split_document("aaaa bbbb cccc", 11) == ["aaaa bbbb", "cccc"]
    assert split_document("aaaaaaaaaa", 4) == ["aaaa", "aaaa", "aa"]


@pytest.mark.parametrize("block_bytes", [1, 1000, 5000])
def test_blocks_are_of_the_size_that_was_asked_for(tmp_path: Path, block_bytes: int) -> None:
    rng = random.Random(8)
    documents = [sentences(rng, 50) for _ in range(60)]
    longest = max(len(json.dumps({"text": text})) for text in documents)
    path = write_jsonl(tmp_path / "a.jsonl", documents)
    index, _ = write_shards([str(path)], tmp_path / "out", Options(val_fraction=0, block_bytes=block_bytes))
    for block in range(index.header["blocks"]):
        size = sum(len(json.dumps({"text": text})) + 1 for text in index.documents(block, "train"))
        assert size < block_bytes + 2 * longest  # a member and a block end after the document that reaches the size


def test_the_parts_of_a_document_stand_on_one_side(tmp_path: Path) -> None:
    rng = random.Random(6)
    documents = [f"d{number} " + f"w{number} " * 40 for number in range(40)]
    rng.shuffle(documents)
    path = write_jsonl(tmp_path / "a.jsonl", documents)
    index, report = write_shards([str(path)], tmp_path / "out", Options(val_fraction=0.5, longest_document_bytes=50))
    assert report.split == len(documents)
    sides = [{text.split()[-1] for text in texts_of(index, split)} for split in ("train", "validation")]
    assert all(sides)
    assert not sides[0] & sides[1]


def test_little_memory_gives_the_same_shards(
    tmp_path: Path, many_files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs of 2 kB: a batch file then holds many."""
    write_shards(many_files, tmp_path / "whole", SMALL)
    monkeypatch.setattr(passes, "BATCH_BYTES", 2000)
    monkeypatch.setattr(passes, "BUCKET_BYTES", 1)
    write_shards(many_files, tmp_path / "out", SMALL)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
