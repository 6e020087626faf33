"""A corpus is written whole or not at all, by one machine or several, and a killed job resumes."""

from __future__ import annotations

import errno
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import webdataset

from maskloom.data.index.corpus import Index, held_out_threshold, text_hash
from maskloom.data.writing import passes
from maskloom.data.writing import shards as module
from maskloom.data.writing.passes import Options
from maskloom.data.writing.shards import finish, finish_or_open, write_part, write_shards
from maskloom.data.writing.work import JobPart
from maskloom.errors import UserError
from tests.conftest import sentences

from .making import SMALL, files_of, texts_of, write_jsonl


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
    monkeypatch.setattr(passes, "SMALLEST_BATCH_BYTES", 1)
    inputs = [str(write_jsonl(tmp_path / "a.jsonl", ["text"])), str(tmp_path / "b.jsonl")]
    (tmp_path / "b.jsonl").write_text("no JSON")
    assert write_part(inputs, tmp_path / "out", Options(), JobPart(1, 2)) == [2]
    before = files_of(tmp_path / ".out.work" / "batches")
    for part in (JobPart(2, 2), JobPart()):
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


def test_after_a_failure_the_same_call_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize("of", [1, 2, 3])
def test_parts_make_what_one_machine_makes(
    tmp_path: Path, many_files: list[str], of: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "SMALLEST_BATCH_BYTES", 1)
    whole, report = write_shards(many_files, tmp_path / "whole", SMALL)
    assert (report.documents, report.duplicates) == (102, 1)
    out = tmp_path / "out"
    parts = [JobPart(number, of) for number in range(1, of + 1)]
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
    monkeypatch.setattr(passes, "SMALLEST_BATCH_BYTES", 1)
    monkeypatch.setattr(module, "POLL_S", 0.01)
    out = tmp_path / "out"
    waited: list[list[int]] = []

    def others(late: list[int]) -> None:
        """The others come one after the other, each when the first part is seen to wait."""
        waited.append(late)
        write_part(many_files, out, SMALL, JobPart(late[0], 3))

    assert write_part(many_files, out, SMALL, JobPart(1, 3), wait=True, on_wait=others) == []
    assert waited == [[2, 3], [3]]


def test_what_is_damaged_in_between_is_noticed(tmp_path: Path, many_files: list[str]) -> None:
    out = tmp_path / "out"
    assert write_part(many_files, out, SMALL, JobPart(1, 2)) == []
    work = tmp_path / ".out.work"
    batch = work / "batches" / "000000"
    batch.write_bytes(batch.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"batches/000000 is damaged: remove it and start the same command again"):
        write_part(many_files, out, SMALL, JobPart(2, 2))
    batch.unlink()
    write_part(many_files, out, SMALL, JobPart(1, 2))
    write_part(many_files, out, SMALL, JobPart(2, 2))
    entry = next((work / "entries").iterdir())
    written = json.loads(entry.read_text())
    entry.write_text(json.dumps(written | {"records": written["records"] - 1}))
    with pytest.raises(UserError, match=r"102 pieces of text were read into .*batches, 101 of them came back"):
        finish(out)
    entry.write_text(json.dumps(written))
    write_shards(many_files, tmp_path / "whole", SMALL)
    finish(out)
    assert files_of(out) == files_of(tmp_path / "whole")


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

    monkeypatch.setattr(passes, "SMALLEST_BATCH_BYTES", 1 << 30)  # one batch, which is done when it is told
    with pytest.raises(UserError, match=r"4\.jsonl changed while it was read: .* Start again"):
        write_shards(many_files, tmp_path / "out", SMALL, on_stage=on_stage)
    assert not list(tmp_path.glob("*out*"))


def test_a_part_that_waits_while_another_finishes_is_done(
    tmp_path: Path, many_files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "SMALLEST_BATCH_BYTES", 1)
    monkeypatch.setattr(module, "POLL_S", 0.0)
    out = tmp_path / "out"

    def finish_all(late: list[int]) -> None:
        write_shards(many_files, out, SMALL)

    assert write_part(many_files, out, SMALL, JobPart(1, 3), wait=True, on_wait=finish_all) == []
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
