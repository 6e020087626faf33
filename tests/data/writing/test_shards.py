from __future__ import annotations

import errno
import json
import multiprocessing
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.data.index.index import Index, held_out_threshold, text_hash
from maskloom.data.index.indexing import check_shard, index_tars
from maskloom.data.writing import shards as module
from maskloom.data.writing.shards import Options, finish, finish_or_open, split_document, write_part, write_shards
from maskloom.data.writing.token_shards import tokenize_corpus
from maskloom.data.writing.work import Part, open_work
from maskloom.errors import UserError
from maskloom.tokenizers.base import Tokenizer
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
    first, report = write_shards(inputs, tmp_path / "one", options, processes=1)
    second, again = write_shards(inputs, tmp_path / "two", options, processes=2)
    assert report == again
    assert len(first.shards) > 2
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    other, _ = write_shards(inputs, tmp_path / "seed", Options(**vars(options) | {"seed": 1}), processes=2)
    assert first.digest == second.digest != other.digest
    assert sorted(texts_of(first)) == sorted(texts_of(other))  # the side of a document is its text's, for every seed


def test_what_becomes_of_empty_repeated_and_long_documents(tmp_path: Path) -> None:
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
        ("bad.parquet", b"PAR1", r"bad\.parquet is damaged"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing_behind(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        write_shards([str(source)], tmp_path / "out", Options(val_fraction=0))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_bad_input_leaves_what_other_parts_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALLEST_BATCH_BYTES", 1)
    inputs = [str(write_jsonl(tmp_path / "a.jsonl", ["text"])), str(tmp_path / "b.jsonl")]
    (tmp_path / "b.jsonl").write_text("no JSON")
    assert write_part(inputs, tmp_path / "out", Options(), Part(1, 2)) == [2]
    before = files_of(tmp_path / ".out.work" / "batches")
    for part in (Part(2, 2), Part()):
        with pytest.raises(UserError, match=r"b\.jsonl, the line at byte 0: not valid JSON"):
            write_part(inputs, tmp_path / "out", Options(), part)
    with pytest.raises(UserError, match=r"b\.jsonl, the line at byte 0: not valid JSON"):
        write_shards(inputs, tmp_path / "out", Options())
    assert files_of(tmp_path / ".out.work" / "batches") == before


def test_a_folder_that_exists_is_never_touched(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["text"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(UserError, match="out exists"):
        write_shards([str(path)], tmp_path / "out", Options())
    assert files_of(tmp_path / "out") == {"mine": b"mine"}


def test_after_a_failure_the_same_call_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError("No space left on device")

    path = write_jsonl(tmp_path / "a.jsonl", ["text", "more"])
    expected, report = write_shards([str(path)], tmp_path / "whole", Options(val_fraction=0))
    with monkeypatch.context() as broken:
        broken.setattr(module, "write_index", full)
        with pytest.raises(OSError, match="No space left"):
            write_shards([str(path)], tmp_path / "out", Options(val_fraction=0))
    assert not (tmp_path / "out").exists()
    told: list[tuple[str, float]] = []
    index, again = write_shards(
        [str(path)],
        tmp_path / "out",
        Options(val_fraction=0),
        on_stage=lambda name, total: told.append((name, total)) or (lambda amount: None),
    )
    assert told == [("reading", 0), ("writing", 0)]  # both were done
    assert (index.digest, again) == (expected.digest, report)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "out", "whole"]


def test_work_that_was_begun_otherwise_is_refused_with_what_differs(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["text", "more"])
    two = Part(2, 2)
    write_part([str(path)], tmp_path / "out", Options(seed=3), two)
    before = files_of(tmp_path / ".out.work")
    with pytest.raises(
        UserError, match=r"\.out\.work holds unfinished work.*\n  seed: 3 then, 4 here\nRemove .*\.out\.work"
    ):
        write_part([str(path)], tmp_path / "out", Options(seed=4), two)
    other = write_jsonl(tmp_path / "b.jsonl", ["text"])
    with pytest.raises(UserError, match=rf"inputs: .*\n  {other}: not there then"):
        write_part([str(path), str(other)], tmp_path / "out", Options(seed=3), two)
    write_jsonl(path, ["text", "other"])
    with pytest.raises(UserError, match=rf"{path}: \d+ bytes of [\d.]+ then, \d+ bytes of [\d.]+ here"):
        write_part([str(path)], tmp_path / "out", Options(seed=3), two)
    with pytest.raises(UserError, match=r"a\.jsonl: "):  # a refusal is no reason to remove what is there
        write_shards([str(path)], tmp_path / "out", Options(seed=3))
    assert files_of(tmp_path / ".out.work") == before


def test_two_processes_do_not_do_one_part(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["text", "more"])
    write_part([str(path)], tmp_path / "out", Options(), Part(2, 2))
    with (
        replace(open_work(tmp_path / "out"), part=Part(2, 2)).locked(),
        pytest.raises(UserError, match=r"another process works on part 2/2 in .*\.out\.work"),
    ):
        write_part([str(path)], tmp_path / "out", Options(), Part(2, 2))
    write_part([str(path)], tmp_path / "out", Options(), Part(2, 2))


@pytest.fixture
def many_files(tmp_path: Path) -> list[str]:
    """Inputs of a few batches and shards."""
    rng = random.Random(9)
    files = [write_jsonl(tmp_path / f"{n}.jsonl", [sentences(rng, 40) for _ in range(20)]) for n in range(5)]
    with files[0].open("a") as file:
        file.write(json.dumps({"text": "the same"}) + "\n")
    with files[4].open("a") as file:
        file.write(json.dumps({"text": "the same"}) + "\n")
    return [str(file) for file in files]


SMALL = Options(val_fraction=0.2, shard_bytes=6000, block_bytes=1000, deduplicate=True)


@pytest.mark.parametrize("of", [1, 2, 3])
def test_parts_make_what_one_machine_makes(
    tmp_path: Path, many_files: list[str], of: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SMALLEST_BATCH_BYTES", 1)
    whole, report = write_shards(many_files, tmp_path / "whole", SMALL)
    assert (report.documents, report.duplicates) == (102, 1)
    out = tmp_path / "out"
    parts = [Part(number, of) for number in range(1, of + 1)]
    for part in parts[:-1]:
        assert write_part(many_files, out, SMALL, part) == [other.number for other in parts[part.number :]]
        with pytest.raises(UserError, match=r"out is not complete: .*not read yet"):
            finish(out)
    assert write_part(many_files, out, SMALL, parts[-1]) == []
    for part in parts[:-1]:
        with pytest.raises(UserError, match=rf"not written yet. Run part\(s\) {part}"):
            finish(out)
        assert write_part(many_files, out, SMALL, part) == []
    assert not out.exists()
    index, again = finish(out)
    assert (index.digest, again) == (whole.digest, report)
    assert files_of(out) == files_of(tmp_path / "whole")
    assert not list(tmp_path.glob(".out.work*"))


def test_a_part_waits_until_all_have_read(
    tmp_path: Path, many_files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SMALLEST_BATCH_BYTES", 1)
    monkeypatch.setattr(module, "POLL_S", 0.01)
    out = tmp_path / "out"
    waited: list[list[int]] = []

    def others(late: list[int]) -> None:
        """The others come one after the other, each when the first part is seen to wait."""
        waited.append(late)
        write_part(many_files, out, SMALL, Part(late[0], 3))

    assert write_part(many_files, out, SMALL, Part(1, 3), wait=True, on_wait=others) == []
    assert waited == [[2, 3], [3]]


def test_what_is_damaged_in_between_is_noticed(tmp_path: Path, many_files: list[str]) -> None:
    out = tmp_path / "out"
    assert write_part(many_files, out, SMALL, Part(1, 2)) == []
    work = tmp_path / ".out.work"
    batch = work / "batches" / "000000"
    batch.write_bytes(batch.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"batches/000000 is damaged: remove it and start the same command again"):
        write_part(many_files, out, SMALL, Part(2, 2))
    batch.unlink()
    write_part(many_files, out, SMALL, Part(1, 2))
    write_part(many_files, out, SMALL, Part(2, 2))
    entry = next((work / "entries").iterdir())
    written = json.loads(entry.read_text())
    entry.write_text(json.dumps(written | {"records": written["records"] - 1}))
    with pytest.raises(UserError, match=r"102 pieces of text were read into .*batches, 101 of them came back"):
        finish(out)
    entry.write_text(json.dumps(written))
    write_shards(many_files, tmp_path / "whole", SMALL)
    finish(out)
    assert files_of(out) == files_of(tmp_path / "whole")


def test_nothing_to_finish_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no work on .*out was begun"):
        finish(tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="out exists: there is nothing left to finish"):
        finish(tmp_path / "out")


def test_a_kill_after_the_last_rename_leaves_a_corpus(tmp_path: Path, many_files: list[str]) -> None:
    out = tmp_path / "out"
    index, report = write_shards(many_files, out, SMALL)
    (tmp_path / ".out.work" / "batches").mkdir(parents=True)
    found, again = finish(out)
    assert (found.digest, again) == (index.digest, report)
    assert not (tmp_path / ".out.work").exists()


def killed_at_the_end(monkeypatch: pytest.MonkeyPatch, make: Callable[[], Any]) -> None:
    """Make a corpus, killed between the rename to OUT and the clean-up."""

    def kill(out: Path) -> bool:
        if out.exists():
            raise KeyboardInterrupt
        return False

    with monkeypatch.context() as broken:
        broken.setattr(module, "remove_finished", kill)
        with pytest.raises(KeyboardInterrupt):
            make()


def test_after_a_kill_at_the_very_end_the_same_call_is_done(
    tmp_path: Path, many_files: list[str], monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer
) -> None:
    out, work = tmp_path / "out", tmp_path / ".out.work"
    killed_at_the_end(monkeypatch, lambda: write_shards(many_files, out, SMALL))
    before = files_of(out)
    with pytest.raises(UserError, match="out exists"):  # other work is not taken for this
        write_shards(many_files, out, replace(SMALL, seed=1))
    assert work.exists()
    assert write_part(many_files, out, SMALL, Part(2, 3)) == []
    index, report = write_shards(many_files, out, SMALL)
    assert (index.digest, report.documents) == (finish_or_open(out)[0].digest, 102)
    assert not work.exists()
    assert files_of(out) == before
    with pytest.raises(UserError, match="out exists"):
        write_shards(many_files, out, SMALL)
    tokens = tmp_path / "tokens"

    def tokenize() -> Index:
        tokenize_corpus(index, tokens, tokenizer, Part(), 1, lambda name, total: lambda amount: None)
        return finish_or_open(tokens)[0]

    killed_at_the_end(monkeypatch, tokenize)
    assert tokenize().digest == index.digest
    assert not (tmp_path / ".tokens.work").exists()


@pytest.mark.parametrize("name", ["out", "o[1]", "o*"])
def test_only_work_of_the_very_name_is_removed(tmp_path: Path, many_files: list[str], name: str) -> None:
    others = [
        f".{name}.workshop.work",
        f".{name}.work.work",
        f".{name}.work.x.work.host.12",
        f".{name}.work.txt",
        ".o1.work",
    ]
    for other in others:
        (tmp_path / other).mkdir()
    (tmp_path / f".{name}.work.md").write_text("notes")
    (tmp_path / f".{name}.work.node-1.cluster.4711").mkdir()  # killed while it made the folder
    write_shards(many_files, tmp_path / name, SMALL)
    expected = {*others, f".{name}.work.md", name, *(Path(file).name for file in many_files)}
    assert {path.name for path in tmp_path.iterdir()} == expected


def test_input_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, many_files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut at a line's end after its batch was read: only its size and time tell."""
    last = Path(many_files[-1])

    def on_stage(name: str, total: float) -> Callable[[float], None]:
        def advance(amount: float) -> None:
            if name == "reading":
                last.write_text(last.read_text().split("\n", 1)[0] + "\n")

        return advance

    monkeypatch.setattr(module, "SMALLEST_BATCH_BYTES", 1 << 30)  # one batch, which is done when it is told
    with pytest.raises(UserError, match=r"4\.jsonl changed while it was read: .* Start again"):
        write_shards(many_files, tmp_path / "out", SMALL, on_stage=on_stage)
    assert not list(tmp_path.glob("*out*"))


def test_a_part_that_waits_while_another_finishes_is_done(
    tmp_path: Path, many_files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SMALLEST_BATCH_BYTES", 1)
    monkeypatch.setattr(module, "POLL_S", 0.0)
    out = tmp_path / "out"

    def finish_all(late: list[int]) -> None:
        write_shards(many_files, out, SMALL)

    assert write_part(many_files, out, SMALL, Part(1, 3), wait=True, on_wait=finish_all) == []
    assert finish_or_open(out)[0].header["documents"] > 0


def test_a_link_that_leads_nowhere_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("nowhere")
    with pytest.raises(UserError, match="out is a link that leads nowhere"):
        write_shards(["hf:there/is/no/such:thing"], tmp_path / "out", Options())


def test_what_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["text"])

    def refuse(self: Path, *arguments: Any, **options: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"/x/out cannot be written: Read-only file system \(.*/x\)"):
        write_shards([str(path)], tmp_path / "x" / "out", Options())


def test_little_memory_gives_the_same_shards(
    tmp_path: Path, many_files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs of 2 kB: a batch file then holds many."""
    write_shards(many_files, tmp_path / "whole", SMALL)
    monkeypatch.setattr(module, "BATCH_BYTES", 2000)
    monkeypatch.setattr(module, "BUCKET_BYTES", 1)
    write_shards(many_files, tmp_path / "out", SMALL)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_token_shards_of_text_and_of_a_corpus_are_one_corpus(
    tmp_path: Path, many_files: list[str], tokenizer: Tokenizer
) -> None:
    text, report = write_shards(many_files, tmp_path / "text", SMALL)
    direct, again = write_shards(many_files, tmp_path / "direct", SMALL, tokenizer=tokenizer)
    assert report == again
    for part in (Part(1, 2), Part(2, 2)):
        tokenize_corpus(text, tmp_path / "later", tokenizer, part, 1, lambda name, total: lambda amount: None)
    later, nothing = finish(tmp_path / "later")
    assert nothing is None
    assert text.digest == direct.digest == later.digest
    assert direct.header["table_digest"] == later.header["table_digest"] != text.header["table_digest"]
    assert direct.header["text_bytes"] == later.header["text_bytes"] == text.header["text_bytes"]
    for name in ("shard", "documents", "held_out"):
        assert direct.columns[name].tolist() == later.columns[name].tolist() == text.columns[name].tolist()
    for block in range(text.header["blocks"]):
        for split in ("train", "validation"):
            expected = [ids.tolist() for ids in text.tokenized(block, split, tokenizer)]
            for index in (direct, later):
                assert [ids.tolist() for ids in index.tokenized(block, split, tokenizer)] == expected
    for index in (direct, later):
        assert all(check_shard(index, number) == [] for number in range(len(index.shards)))
    with pytest.raises(UserError, match="holds token shards already"):
        tokenize_corpus(later, tmp_path / "x", tokenizer, Part(), 1, lambda name, total: lambda amount: None)


def test_plain_webdataset_reads_token_shards_under_the_keys_of_the_text(
    tmp_path: Path, many_files: list[str], tokenizer: Tokenizer
) -> None:
    write_shards(many_files, tmp_path / "text", SMALL)
    write_shards(many_files, tmp_path / "tokens", SMALL, tokenizer=tokenizer)

    def keys(folder: str) -> list[str]:
        urls = [str(path) for path in sorted((tmp_path / folder).glob("*.tar"))]
        return [sample["__key__"] for sample in webdataset.WebDataset(urls, shardshuffle=False)]

    assert keys("tokens")
    assert set(keys("tokens")) <= set(keys("text"))


def test_other_peoples_tars_are_tokenised_with_their_held_out_share(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """One document a sample, both sides in a shard, one sample that cannot be read."""
    rng = random.Random(2)
    with webdataset.TarWriter(str(tmp_path / "a.tar"), mtime=0) as tar:
        for number in range(40):
            tar.write({"__key__": f"sub/{number}", "txt": sentences(rng, 30).encode() if number != 7 else b"\xff"})
    text = index_tars([tmp_path / "a.tar"], tmp_path / "text", block_bytes=800, fraction=0.3, skip_bad=True)
    assert text.header["bad_documents"] == 1
    tokenize_corpus(text, tmp_path / "out", tokenizer, Part(), 1, lambda name, total: lambda amount: None)
    tokens, _ = finish(tmp_path / "out")
    assert tokens.digest == text.digest
    assert tokens.header["held_out_documents"] == text.header["held_out_documents"] > 0
    for block in range(text.header["blocks"]):
        for split in ("train", "validation"):
            found, expected = (index.tokenized(block, split, tokenizer) for index in (tokens, text))
            assert [ids.tolist() for ids in found] == [ids.tolist() for ids in expected]
