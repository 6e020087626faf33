from __future__ import annotations

import json
import multiprocessing
import random
from pathlib import Path
from typing import Any

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.data import shards as module
from maskloom.data.index import Index, held_out_threshold, text_hash
from maskloom.data.shards import Options, split_document, write_shards
from maskloom.errors import UserError
from tests.conftest import sentences

# Imports once, in the server that the writing processes are forked from.
multiprocessing.set_forkserver_preload([module.__name__])


def write_jsonl(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    return path


def texts_of(index: Index, split: Any = "train") -> list[str]:
    return [text for block in range(index.header["blocks"]) for text in index.documents(block, split)]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_document_is_there_once_on_the_side_of_its_hash(index: Index, documents: list[str]) -> None:
    train, held_out = texts_of(index, "train"), texts_of(index, "validation")
    assert sorted(train + held_out) == sorted(text.strip() for text in documents)
    threshold = held_out_threshold(0.1)
    assert sorted(held_out) == sorted(text.strip() for text in documents if text_hash(text) < threshold)
    assert (index.header["documents"], index.header["held_out_documents"]) == (len(train), len(held_out))
    assert index.header["text_bytes"] == sum(len(text.encode()) for text in train + held_out)


def test_plain_webdataset_reads_the_shards(index: Index, corpus_dir: Path) -> None:
    urls = [str(path) for path in sorted(corpus_dir.glob("train-*.tar"))]
    assert len(urls) > 1
    dataset = webdataset.WebDataset(urls, shardshuffle=False)
    lines = [line for sample in dataset for line in sample["jsonl"].splitlines()]
    assert [json.loads(line)["text"] for line in lines] == texts_of(index)


def test_documents_are_shuffled_over_shards(index: Index, documents: list[str]) -> None:
    train = texts_of(index)
    kept = set(train)
    assert train != [text.strip() for text in documents if text.strip() in kept]


def test_one_and_two_processes_write_the_same_files_and_another_seed_others(tmp_path: Path) -> None:
    rng = random.Random(4)
    inputs = [str(write_jsonl(tmp_path / f"{n}.jsonl", [sentences(rng, 40) for _ in range(30)])) for n in range(3)]
    options = Options(val_fraction=0.2, shard_bytes=4000, block_bytes=1000)
    first, counts = write_shards(inputs, tmp_path / "one", options, processes=1)
    second, again = write_shards(inputs, tmp_path / "two", options, processes=2)
    assert counts == again
    assert len(first.shards) > 2
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    other, _ = write_shards(inputs, tmp_path / "seed", Options(**vars(options) | {"seed": 1}), processes=2)
    assert first.digest == second.digest != other.digest
    assert sorted(texts_of(first)) == sorted(texts_of(other))  # the side of a document is its text's, for every seed


def test_what_becomes_of_empty_repeated_and_long_documents(tmp_path: Path) -> None:
    """A document of 10 MB is cut, "[MASK]" stays text, empty ones are counted, and copies are dropped if asked."""
    rng = random.Random(5)
    words = [str(rng.randrange(10**8)) for _ in range(1_200_000)]
    long = "\n\n".join(" ".join(words[start : start + 100]) for start in range(0, len(words), 100))
    assert len(long) > 10_000_000
    special = "a literal [MASK] and [SEP] é"
    path = write_jsonl(tmp_path / "a.jsonl", [long, special, special, " \n", "", "last\u2028line"])
    options = Options(val_fraction=0, longest_document_bytes=64 * 1024)
    told: list[int] = []
    index, counts = write_shards([str(path)], tmp_path / "kept", options, on_plan=told.append, on_read=told.append)
    assert told == [path.stat().st_size] * 2
    documents = texts_of(index)
    parts = [text for text in documents if text not in (special, "last\u2028line")]
    assert sorted(word for part in parts for word in part.split()) == sorted(words)
    assert all(len(part.encode()) <= options.longest_document_bytes for part in parts)
    assert documents.count(special) == 2
    assert (counts.empty, counts.split, counts.duplicates) == (2, 1, 1)
    assert counts.documents == len(documents) == len(parts) + 3
    index, counts = write_shards(
        [str(path)], tmp_path / "dropped", Options(**vars(options) | {"deduplicate": True}), processes=2
    )
    assert sorted(texts_of(index)) == sorted({*documents})
    assert counts.duplicates == 1


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


def test_the_parts_of_a_document_stand_on_one_side(tmp_path: Path) -> None:
    rng = random.Random(6)
    documents = [f"d{number} " + f"w{number} " * 40 for number in range(40)]
    rng.shuffle(documents)
    path = write_jsonl(tmp_path / "a.jsonl", documents)
    index, counts = write_shards([str(path)], tmp_path / "out", Options(val_fraction=0.5, longest_document_bytes=50))
    assert counts.split == len(documents)
    sides = [{text.split()[-1] for text in texts_of(index, split)} for split in ("train", "validation")]
    assert all(sides)
    assert not sides[0] & sides[1]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("bad.txt", b"good so far \xff", r"bad\.txt: not valid UTF-8 at byte 12"),
        ("bad.jsonl", b'{"text": "good"}\n{"text": \n', r"bad\.jsonl, the line at byte 17: not valid JSON"),
        ("bad.jsonl", b'{"content": "good"}\n', r"bad\.jsonl, the line at byte 0: no 'text'"),
        ("bad.jsonl", b'{"text": "\\ud800"}\n', r"bad\.jsonl, the line at byte 0: .*surrogate"),
        ("bad.jsonl.zst", b"not zstd", r"bad\.jsonl\.zst is damaged"),
        ("empty.txt", b" \n ", "every document is empty"),
        ("empty.jsonl", b"", "every document is empty"),
        ("none.md", b"text", r"no \.txt"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing_behind(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        write_shards([str(source)], tmp_path / "out", Options(val_fraction=0))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_failure_while_shards_are_written_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        assert list(tmp_path.glob(".out.*.partial/*.tar"))
        raise OSError("No space left on device")

    monkeypatch.setattr(module, "write_index", full)
    path = write_jsonl(tmp_path / "a.jsonl", ["text"])
    with pytest.raises(OSError, match="No space left"):
        write_shards([str(path)], tmp_path / "out", Options(val_fraction=0))
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_folder_that_exists_is_never_touched(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["text"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(UserError, match="out exists"):
        write_shards([str(path)], tmp_path / "out", Options())
    assert files_of(tmp_path / "out") == {"mine": b"mine"}


def test_what_a_killed_attempt_left_is_replaced(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["text"])
    left = tmp_path / ".out.abc.partial"
    (left / "spill").mkdir(parents=True)
    (left / ".lock").touch()
    (left / "spill" / "train-0-1").write_bytes(b"half a record")
    (left / "train-000007.tar").write_bytes(b"half a shard")
    index, _ = write_shards([str(path)], tmp_path / "out", Options(val_fraction=0))
    assert texts_of(index) == ["text"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["index", "index.json", "train-000000.tar"]
