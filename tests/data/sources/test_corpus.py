from __future__ import annotations

import errno
import gzip
import io
import json
import os
import random
import sysconfig
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.data.sources import compressed, lines
from maskloom.data.sources.corpus import find_sources, read_source
from maskloom.data.sources.documentation import DOCUMENTATION
from maskloom.data.sources.source import TextLayout
from maskloom.errors import UserError
from tests.conftest import sentences

documents = st.lists(st.text(st.characters(codec="utf-8"), max_size=30), max_size=12)
ENGLISH = "This is the text of a documentation string, and it is as long as it needs to be for the test. " * 3


def read(*inputs: object, text_key: str = "text", layout: TextLayout = "file") -> list[tuple[int, int, str]]:
    """(number of the source, ordinal, text) of every document."""
    sources = find_sources([str(given) for given in inputs], text_key)
    return [(source.number, *document) for source in sources for document in read_source(source, text_key, layout)]


def texts(*inputs: object, **options: object) -> list[str]:
    return [text for _, _, text in read(*inputs, **options)]  # type: ignore[arg-type]


def jsonl(rows: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in rows).encode()


def packed(data: bytes, suffix: str) -> bytes:
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor(write_checksum=True).compress}
    return pack[suffix](data)


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


def test_compressed_lines_are_the_plain_ones(tmp_path: Path) -> None:
    rows = [f"document {number} é" for number in range(300)]
    data = jsonl(rows)
    half = len(jsonl(rows[:150]))
    frames = [zstandard.ZstdCompressor().compress(part) for part in (data[:half], data[half:])]
    (tmp_path / "a.jsonl").write_bytes(data)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(data[:half]) + gzip.compress(data[half:]))
    (tmp_path / "c.jsonl.zst").write_bytes(b"".join(frames))
    (tmp_path / "D.JSONL").write_bytes(data)
    for path in tmp_path.iterdir():
        assert texts(path) == rows, path


@pytest.mark.parametrize("read_bytes", [1, 7, 1 << 20])
def test_frames_are_read_in_parts_of_any_size(tmp_path: Path, read_bytes: int) -> None:
    documents = ["x" * 5000, "y"]
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"".join(zstandard.ZstdCompressor().compress(jsonl([line])) for line in documents))
    with patch.object(compressed, "FEED_BYTES", read_bytes):
        assert texts(path) == documents
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(b"".join(gzip.compress(jsonl([line])) for line in documents) + bytes(1000))  # zeros as padding
    with patch.object(compressed, "FEED_BYTES", read_bytes):
        assert texts(path) == documents


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_that_was_cut_off_is_refused(tmp_path: Path, suffix: str) -> None:
    """At every byte: a cut that lost the last lines only must not go unnoticed."""
    data = jsonl(["first", "second"])
    packed = gzip.compress(data) if suffix == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress(data)
    path = tmp_path / f"a.jsonl{suffix}"
    for end in range(1, len(packed)):
        path.write_bytes(packed[:end])
        with pytest.raises(UserError, match=rf"a\.jsonl\{suffix} is damaged or cut off"):
            texts(path)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_damaged_compressed_file_is_refused_or_read_whole(tmp_path: Path, suffix: str) -> None:
    """Some bits of a header carry nothing, such as gzip's time."""
    rows = [f"line {number}" for number in range(20)]
    data = jsonl(rows)
    packed = gzip.compress(data) if suffix == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress(data)
    path = tmp_path / f"a.jsonl{suffix}"
    refused = 0
    for place in range(len(packed)):
        damaged = bytearray(packed)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        try:
            assert texts(path) == rows
        except UserError as error:
            assert path.name in str(error)
            refused += 1
    assert refused > len(packed) // 2


def test_a_folder_is_searched_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b/2.txt", "a.txt", "b/1.txt", "c.jsonl", "ignored.md"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jsonl([name]) if name.endswith("jsonl") else name.encode())
    assert texts(tmp_path) == ["a.txt", "b/1.txt", "b/2.txt", "c.jsonl"]
    numbers = [number for number, _, _ in read(tmp_path / "b", tmp_path / "a.txt")]
    assert len(set(numbers)) == len(numbers)


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


def test_inputs_that_are_missing_or_hold_no_text_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file or folder .*none"):
        find_sources([str(tmp_path / "none")])
    (tmp_path / "picture.png").touch()
    for path in (tmp_path, tmp_path / "picture.png"):
        with pytest.raises(UserError, match=rf"{path}: no \.txt, \.jsonl or \.parquet file there"):
            find_sources([str(path)])


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "a.txt")
    with pytest.raises(UserError, match=r"a\.txt is not a file or folder"):
        find_sources([str(tmp_path / "a.txt")])


def test_the_documentation_is_the_english_docstrings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"purelib": str(tmp_path)})
    foreign = "Ceci est une documentation qui est longue et détaillée pour être ignorée. " * 5
    (tmp_path / "good.py").write_text(
        f'"""{ENGLISH}module"""\nclass A:\n    """{ENGLISH}class"""\n    def f(self):\n        """{ENGLISH}method"""\n'
        f'async def g():\n    """{ENGLISH}function"""\ndef short():\n    """Short."""\n'
        f'def other():\n    """{foreign}"""\n',
        encoding="utf-8",
    )
    (tmp_path / "template.py").write_text("def {{ name }}(:", encoding="utf-8")
    (tmp_path / "zeros.py").write_bytes(b"\0\0")
    assert sorted(text.split()[-1] for text in texts(DOCUMENTATION)) == ["class", "function", "method", "module"]


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
def test_a_byte_order_mark_is_no_text(tmp_path: Path, suffix: str, layout: Any) -> None:
    """At the beginning of a file; anywhere else it is a character (a zero-width no-break space)."""
    text = tmp_path / f"a.txt{suffix}"
    text.write_bytes(packed("\ufeffone\ufeff\n\ufefftwo".encode(), suffix))
    assert texts(text, layout=layout) == ["one\ufeff\n\ufefftwo"]
    rows = tmp_path / f"a.jsonl{suffix}"
    for before in ("\ufeff", "\ufeff\n", "\ufeff\r\n"):
        rows.write_bytes(packed(before.encode() + jsonl(["one", "\ufefftwo"]), suffix))
        assert texts(rows) == ["one", "\ufefftwo"]


def test_a_line_or_a_document_beyond_any_measure_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LONGEST_TEXT_BYTES", 100)
    (tmp_path / "a.jsonl").write_bytes(jsonl(["short", "x" * 90]))
    (tmp_path / "b.txt").write_text("x" * 101)
    (tmp_path / "c.txt").write_text("short\n\n" + "x" * 60 + "\n" + "y" * 60)
    with pytest.raises(UserError, match=r"a\.jsonl: the line at byte 18 has more than 100 bytes"):
        texts(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match=r"b\.txt: one document has more than 100 bytes.*--blank-line"):
        texts(tmp_path / "b.txt")
    with pytest.raises(UserError, match=r"c\.txt: the document that goes on at byte 68 has more than 100 bytes"):
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


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_what_expands_beyond_reason_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, suffix: str
) -> None:
    monkeypatch.setattr(compressed, "SUSPECT_BYTES", 1 << 16)
    path = tmp_path / (name + suffix)
    path.write_bytes(packed(b"\n" * (1 << 20), suffix))
    with pytest.raises(UserError, match=rf"{name}\{suffix}: \d+ compressed bytes gave \d+ bytes, more than 200 times"):
        texts(path)
    rng = random.Random(1)
    text = "\n".join(sentences(rng, 50) for _ in range(1000))  # as much, but text
    path.write_bytes(packed(text.encode() if name == "a.txt" else jsonl([text]), suffix))
    assert texts(path) == [text]


def test_a_null_is_an_empty_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": null}\n{"text": "a"}\n')
    assert texts(tmp_path / "a.jsonl") == ["", "a"]
    (tmp_path / "a.jsonl").write_bytes(b'{"other": null}\n')
    with pytest.raises(UserError, match="no 'text' in the object"):
        texts(tmp_path / "a.jsonl")


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


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("content", [b"", b"\0" * 600])
def test_a_compressed_file_without_a_frame_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.jsonl\.\w+ is damaged or cut off"):
        texts(path)
    path.write_bytes(packed(b"", suffix))
    assert texts(path) == []


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


def test_documentation_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.py").write_text(f'"""{ENGLISH}"""')
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"purelib": str(tmp_path)})
    (source,) = find_sources([DOCUMENTATION])
    assert len(list(read_source(source, "text", "file"))) == 1
    (tmp_path / "c.py").write_text("")
    with pytest.raises(UserError, match=r"changed while it was read: .* then 0 bytes of Python"):
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


def test_a_place_without_python_files_has_no_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"purelib": str(tmp_path)})
    with pytest.raises(UserError, match="no Python file is installed"):
        find_sources([DOCUMENTATION])
