"""Files of lines: every document once, with its place, however the file is cut."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.data.sources import lines
from maskloom.data.sources.inputs import find_sources
from maskloom.errors import UserError

from .making import jsonl, packed, read, texts

documents = st.lists(st.text(st.characters(codec="utf-8"), max_size=30), max_size=12)


@settings(max_examples=50, deadline=None)
@given(documents, st.integers(1, 90), st.booleans())
def test_ranges_of_any_size_read_every_line_once(
    tmp_path_factory: pytest.TempPathFactory, rows: list[str], range_bytes: int, end_of_line: bool
) -> None:
    path = tmp_path_factory.mktemp("ranges") / "a.jsonl"
    data = jsonl(rows)
    path.write_bytes(data if end_of_line else data[:-1])
    whole = read(path)
    with patch.object(lines, "RANGE_BYTES", range_bytes):
        ranged = read(path)
        assert len(find_sources([str(path)])) == max(1, -(-path.stat().st_size // range_bytes))
    assert [text for _, _, text in whole] == rows
    assert ranged == whole  # the same ordinals as well: a document's identity does not depend on the ranges


def test_text_files_are_one_document_or_split_at_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n\none\nstill one\n \t\ntwo\r\n\r\n\nthree", encoding="utf-8")
    assert texts(path) == [path.read_bytes().decode()]
    assert texts(path, layout="blank-line") == ["one\nstill one", "two", "three"]


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=20), st.sampled_from([b"\xff", b"\xc3(", b"\xe2\x82"]))
def test_invalid_utf8_names_file_and_byte(tmp_path_factory: pytest.TempPathFactory, before: str, bad: bytes) -> None:
    path = tmp_path_factory.mktemp("bad") / "bad.txt"
    path.write_bytes(before.encode() + bad)
    with pytest.raises(UserError) as error:
        texts(path)
    assert f"{path}: not valid UTF-8 at byte {len(before.encode())}" in str(error.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [(b"{", "not valid JSON"), (b'{"a": 1}', "no 'text' in the object; it has 'a'"), (b'{"text": "\xff"}', "byte 10")],
)
def test_a_bad_line_names_file_and_place(tmp_path: Path, line: bytes, said: str) -> None:
    good = jsonl(["good"])
    (tmp_path / "a.jsonl").write_bytes(good + line + b"\n" + good)
    with pytest.raises(UserError) as error:
        texts(tmp_path / "a.jsonl")
    assert f"a.jsonl, the line at byte {len(good)}: " in str(error.value)
    assert said in str(error.value)


@settings(max_examples=50, deadline=None)
@given(st.text(st.sampled_from("ab \n\r\t\u2028\x0c\x85\ufeff"), max_size=60), st.sampled_from(["", ".gz", ".zst"]))
def test_blank_lines_split_a_stream_as_they_split_the_whole(
    tmp_path_factory: pytest.TempPathFactory, text: str, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("blank") / f"a.txt{suffix}"
    path.write_bytes(packed(text.encode(), suffix))
    whole = text.removeprefix("\ufeff")
    expected: list[list[str]] = [[]]
    for line in io.StringIO(whole, newline=None):  # universal newlines
        line = line.removesuffix("\n")
        if line.strip():
            expected[-1].append(line)
        elif expected[-1]:
            expected.append([])
    assert texts(path, layout="blank-line") == ["\n".join(part) for part in expected if part]
    assert texts(path) == [whole]


NO_LINE_ENDS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"  # where `str.splitlines` cuts


@pytest.mark.parametrize("mark", NO_LINE_ENDS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_only_line_ends_end_a_line(tmp_path: Path, mark: str, end: str) -> None:
    first, second = f"one{mark}{mark}still one\n{mark}one", f"two{mark}"
    path = tmp_path / "a.txt"
    path.write_bytes(f"{first}\n\n \n{second}\n".replace("\n", end).encode())
    assert texts(path, layout="blank-line") == [first, second]
    rows = [first, second]
    (tmp_path / "a.jsonl").write_bytes(
        b"".join(json.dumps({"text": row}, ensure_ascii=False).encode() + b"\n" for row in rows)
    )
    assert texts(tmp_path / "a.jsonl") == rows


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("layout", ["file", "blank-line"])
def test_a_byte_order_mark_is_not_text(tmp_path: Path, suffix: str, layout: Any) -> None:
    """At the beginning of a file; anywhere else it is a character (a zero-width no-break space)."""
    text = tmp_path / f"a.txt{suffix}"
    text.write_bytes(packed("\ufeffone\ufeff\n\ufefftwo".encode(), suffix))
    assert texts(text, layout=layout) == ["one\ufeff\n\ufefftwo"]
    rows = tmp_path / f"a.jsonl{suffix}"
    for before in ("\ufeff", "\ufeff\n", "\ufeff\r\n"):
        rows.write_bytes(packed(before.encode() + jsonl(["one", "\ufefftwo"]), suffix))
        assert texts(rows) == ["one", "\ufefftwo"]


def test_an_absurdly_long_line_or_document_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LONGEST_TEXT_BYTES", 100)
    (tmp_path / "a.jsonl").write_bytes(jsonl(["short", "x" * 90]))
    (tmp_path / "b.txt").write_text("x" * 101)
    (tmp_path / "c.txt").write_text("short\n\n" + "x" * 60 + "\n" + "y" * 60)
    with pytest.raises(UserError, match=r"a\.jsonl: the line at byte 18 has more than 100 bytes"):
        texts(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match=r"b\.txt: one document has more than 100 bytes.*--blank-line"):
        texts(tmp_path / "b.txt")
    with pytest.raises(UserError, match=r"c\.txt: the document around byte 68 has more than 100 bytes"):
        texts(tmp_path / "c.txt", layout="blank-line")


@pytest.mark.parametrize("range_bytes", [150, 1 << 20])
def test_a_line_of_many_ranges_belongs_to_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, range_bytes: int
) -> None:
    monkeypatch.setattr(lines, "SKIP_BYTES", 100)
    monkeypatch.setattr(lines, "RANGE_BYTES", range_bytes)
    rows = ["x" * 1000, "y", "z" * 300]
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows))
    assert texts(tmp_path / "a.jsonl") == rows


def test_a_null_is_an_empty_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": null}\n{"text": "a"}\n')
    assert texts(tmp_path / "a.jsonl") == ["", "a"]
    (tmp_path / "a.jsonl").write_bytes(b'{"other": null}\n')
    with pytest.raises(UserError, match="no 'text' in the object"):
        texts(tmp_path / "a.jsonl")
