"""Inputs to sources: files, folders, links, and a table of kinds."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from maskloom.data.sources.inputs import KINDS, find_sources
from maskloom.data.sources.source import Source, SourceKind, TextLayout
from maskloom.errors import UserError

from .making import jsonl, read, texts


def test_a_folder_is_searched_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b/2.txt", "a.txt", "b/1.txt", "c.jsonl", "ignored.md"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jsonl([name]) if name.endswith("jsonl") else name.encode())
    assert texts(tmp_path) == ["a.txt", "b/1.txt", "b/2.txt", "c.jsonl"]
    numbers = [number for number, _, _ in read(tmp_path / "b", tmp_path / "a.txt")]
    assert len(set(numbers)) == len(numbers)


def test_inputs_that_are_missing_or_without_text_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file or folder .*none"):
        find_sources([str(tmp_path / "none")])
    (tmp_path / "picture.png").touch()
    for path in (tmp_path, tmp_path / "picture.png"):
        with pytest.raises(UserError, match=rf"{path}: no \.txt, \.jsonl, \.csv, \.tsv or \.parquet file there"):
            find_sources([str(path)])


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_reading_never_hangs_on_what_is_not_a_file(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "a.txt")
    with pytest.raises(UserError, match=r"a\.txt is not a file or folder"):
        find_sources([str(tmp_path / "a.txt")])


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "c.txt").write_text("c")
    (tmp_path / "in" / "a.txt").write_text("a")
    (tmp_path / "in" / "sub" / "b.txt").write_text("b")
    (tmp_path / "in" / "sub" / "up").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "self").symlink_to("self")
    (tmp_path / "in" / "gone.txt").symlink_to("nowhere")
    (tmp_path / "in" / "x").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "y").symlink_to(tmp_path / "elsewhere")
    assert sorted(texts(tmp_path / "in")) == ["a", "b", "c"]


def test_a_file_that_is_given_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_bytes(jsonl(["text"]))
    (tmp_path / "link.jsonl").symlink_to("in/a.jsonl")
    for inputs in (["in/a.jsonl", "./in/a.jsonl"], ["in", "in/a.jsonl"], ["in", "in"]):
        with pytest.raises(UserError, match=r"in/a\.jsonl is given twice: .* Name it once"):
            read(*inputs)
    with pytest.raises(UserError, match=r"link\.jsonl is given twice, also as in/a\.jsonl"):
        read("in", "link.jsonl")


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.txt").write_text("a")
    listed = os.scandir

    def scandir(folder: os.PathLike[str]) -> object:
        if str(folder).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"the folder .*closed cannot be listed \(Permission denied\)"):
        read(tmp_path)


def test_a_kind_of_source_is_a_row_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file kind is found in folders, an input kind by its name; both are read by what their row says."""

    def find(given: str, text_key: str, number: int) -> list[Source]:
        return [Source("poem", given, number, 5, "fingerprint 1", unit="verse")]

    def read_poem(source: Source, text_key: str, layout: TextLayout) -> Iterator[tuple[int, str]]:
        yield 3, f"{text_key} of {Path(source.name).name}"

    row = SourceKind("poem", "a poem", find, read_poem, (".poem",), takes=lambda given: given.startswith("poem:"))
    monkeypatch.setitem(KINDS, "poem", row)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.poem").touch()
    (tmp_path / "in" / "b.txt").write_text("prose")
    (tmp_path / "in" / "c.poem.gz").touch()
    assert read(tmp_path / "in", "poem:x", text_key="body") == [
        (0, 3, "body of a.poem"),
        (1, 0, "prose"),
        (2, 3, "body of poem:x"),
    ]
    assert find_sources(["poem:x"])[0].place(3) == "poem:x, verse 3"
    with pytest.raises(UserError, match=r"no \.txt, \.jsonl, \.csv, \.tsv, \.parquet or \.poem file there"):
        find_sources([str(tmp_path / "in" / "c.poem.gz")])
