"""The work folder: one plan, one process a part, and what a kill at any moment leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maskloom.data.index.corpus import Index
from maskloom.data.writing import shards as module
from maskloom.data.writing.passes import Options
from maskloom.data.writing.shards import finish, finish_or_open, write_part, write_shards
from maskloom.data.writing.token_shards import tokenize_corpus
from maskloom.data.writing.work import JobPart, open_work
from maskloom.errors import UserError
from maskloom.tokenizers.base import Tokenizer

from .making import SMALL, files_of, write_jsonl


def test_work_with_other_settings_is_refused_with_the_differences(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["text", "more"])
    two = JobPart(2, 2)
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
    write_part([str(path)], tmp_path / "out", Options(), JobPart(2, 2))
    with (
        replace(open_work(tmp_path / "out"), part=JobPart(2, 2)).locked(),
        pytest.raises(UserError, match=r"another process works on part 2/2 in .*\.out\.work"),
    ):
        write_part([str(path)], tmp_path / "out", Options(), JobPart(2, 2))
    write_part([str(path)], tmp_path / "out", Options(), JobPart(2, 2))


def test_nothing_to_finish_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no work on .*out was begun"):
        finish(tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="out exists: there is nothing left to finish"):
        finish(tmp_path / "out")


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


def test_a_kill_after_the_last_rename_leaves_a_corpus(tmp_path: Path, many_files: list[str]) -> None:
    out = tmp_path / "out"
    index, report = write_shards(many_files, out, SMALL)
    (tmp_path / ".out.work" / "batches").mkdir(parents=True)
    found, again = finish(out)
    assert (found.digest, again) == (index.digest, report)
    assert not (tmp_path / ".out.work").exists()


def test_after_a_kill_at_the_very_end_the_same_call_is_done(
    tmp_path: Path, many_files: list[str], monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer
) -> None:
    out, work = tmp_path / "out", tmp_path / ".out.work"
    killed_at_the_end(monkeypatch, lambda: write_shards(many_files, out, SMALL))
    before = files_of(out)
    with pytest.raises(UserError, match="out exists"):  # other work is not taken for this
        write_shards(many_files, out, replace(SMALL, seed=1))
    assert work.exists()
    assert write_part(many_files, out, SMALL, JobPart(2, 3)) == []
    index, report = write_shards(many_files, out, SMALL)
    assert (index.digest, report.documents) == (finish_or_open(out)[0].digest, 102)
    assert not work.exists()
    assert files_of(out) == before
    with pytest.raises(UserError, match="out exists"):
        write_shards(many_files, out, SMALL)
    tokens = tmp_path / "tokens"

    def tokenize() -> Index:
        tokenize_corpus(index, tokens, tokenizer, JobPart(), 1, lambda name, total: lambda amount: None)
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
