from __future__ import annotations

import gzip
import json
import sysconfig
from pathlib import Path
from unittest.mock import patch

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.data import corpus
from maskloom.data.corpus import DOCUMENTATION, find_sources, read_source
from maskloom.errors import UserError

documents = st.lists(st.text(st.characters(codec="utf-8"), max_size=30), max_size=12)
ENGLISH = "This is the text of a documentation string, and it is as long as it needs to be for the test. " * 3


def read(*inputs: object, text_key: str = "text", layout: corpus.TextLayout = "file") -> list[tuple[int, int, str]]:
    """(number of the source, ordinal, text) of every document."""
    sources = find_sources([str(given) for given in inputs])
    return [(source.number, *document) for source in sources for document in read_source(source, text_key, layout)]


def texts(*inputs: object, **options: object) -> list[str]:
    return [text for _, _, text in read(*inputs, **options)]  # type: ignore[arg-type]


def jsonl(lines: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in lines).encode()


@settings(max_examples=50, deadline=None)
@given(documents, st.integers(1, 90), st.booleans())
def test_ranges_of_any_size_read_every_line_once(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], range_bytes: int, end_of_line: bool
) -> None:
    path = tmp_path_factory.mktemp("ranges") / "a.jsonl"
    data = jsonl(lines)
    path.write_bytes(data if end_of_line else data[:-1])
    whole = read(path)
    with patch.object(corpus, "RANGE_BYTES", range_bytes):
        ranged = read(path)
        assert len(find_sources([str(path)])) == max(1, -(-path.stat().st_size // range_bytes))
    assert [text for _, _, text in whole] == lines
    assert ranged == whole  # the same ordinals as well: a document's identity does not depend on the ranges


def test_compressed_lines_are_the_plain_ones(tmp_path: Path) -> None:
    lines = [f"document {number} é" for number in range(300)]
    data = jsonl(lines)
    half = len(jsonl(lines[:150]))
    frames = [zstandard.ZstdCompressor().compress(part) for part in (data[:half], data[half:])]
    (tmp_path / "a.jsonl").write_bytes(data)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(data[:half]) + gzip.compress(data[half:]))
    (tmp_path / "c.jsonl.zst").write_bytes(b"".join(frames))
    (tmp_path / "D.JSONL").write_bytes(data)
    for path in tmp_path.iterdir():
        assert texts(path) == lines, path


@pytest.mark.parametrize("read_bytes", [1, 7, 1 << 20])
def test_frames_are_read_in_parts_of_any_size(tmp_path: Path, read_bytes: int) -> None:
    lines = ["x" * 5000, "y"]
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"".join(zstandard.ZstdCompressor().compress(jsonl([line])) for line in lines))
    with patch.object(corpus, "ZSTD_READ_BYTES", read_bytes):
        assert texts(path) == lines


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
    lines = [f"line {number}" for number in range(20)]
    data = jsonl(lines)
    packed = gzip.compress(data) if suffix == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress(data)
    path = tmp_path / f"a.jsonl{suffix}"
    refused = 0
    for place in range(len(packed)):
        damaged = bytearray(packed)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        try:
            assert texts(path) == lines
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
    numbers = [number for number, _, _ in read(tmp_path, tmp_path / "a.txt")]
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
        with pytest.raises(UserError, match=rf"{path}: no \.txt, \.jsonl"):
            find_sources([str(path)])


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


def test_a_place_without_python_files_has_no_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"purelib": str(tmp_path)})
    with pytest.raises(UserError, match="no Python file is installed"):
        find_sources([DOCUMENTATION])
