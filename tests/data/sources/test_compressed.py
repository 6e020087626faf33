"""Compressed files: the same text, in bounded memory, and never a silent end."""

from __future__ import annotations

import gzip
import random
from pathlib import Path
from unittest.mock import patch

import pytest
import zstandard

from maskloom.data.sources import compressed
from maskloom.errors import UserError
from tests.conftest import sentences

from .making import jsonl, packed, texts


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


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("content", [b"", b"\0" * 600])
def test_a_compressed_file_without_a_frame_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.jsonl\.\w+ is damaged or cut off"):
        texts(path)
    path.write_bytes(packed(b"", suffix))
    assert texts(path) == []
