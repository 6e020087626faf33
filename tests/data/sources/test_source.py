"""What identifies a source, how large it is, and whether it changed."""

from __future__ import annotations

import gzip
import os
import sysconfig
from pathlib import Path

import pytest

from maskloom.data.sources.documentation import DOCUMENTATION
from maskloom.data.sources.inputs import find_sources, read_source
from maskloom.errors import UserError

from .making import ENGLISH, jsonl


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(jsonl(["one", "two"]))
    (source,) = find_sources([str(path)])
    path.write_bytes(jsonl(["one"]))  # cut at a line's end: nothing in it is wrong
    with pytest.raises(UserError, match=rf"{name} changed while it was read: \d+ bytes of .* then \d+ bytes of"):
        list(read_source(source, "text", "file"))
    path.write_bytes(jsonl(["one"])[:-3] + b"\xff")  # what is wrong is that somebody writes to it
    with pytest.raises(UserError, match="changed while it was read"):
        list(read_source(source, "text", "file"))


def test_stamps_tell_a_file_that_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = find_sources([str(path)])[0].stamp
    os.utime(path, ns=(1, 1))
    after = find_sources([str(path)])[0].stamp
    path.write_text("more")
    assert len({before, after, find_sources([str(path)])[0].stamp}) == 3


def test_sizes_are_those_of_the_text_and_of_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = jsonl(["text"] * 100)
    (tmp_path / "a.jsonl").write_bytes(data)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(data))
    plain, small = find_sources([str(tmp_path)])
    assert plain.bytes == plain.work_bytes == len(data)
    assert (small.bytes, small.work_bytes) == (4 * len(gzip.compress(data)), len(gzip.compress(data)))
    (tmp_path / "c.py").write_text(f'"""{ENGLISH}"""' + "\n# code" * 1000)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"purelib": str(tmp_path)})
    (source,) = find_sources([DOCUMENTATION])
    assert source.work_bytes == (tmp_path / "c.py").stat().st_size == source.bytes * 8 + source.work_bytes % 8
