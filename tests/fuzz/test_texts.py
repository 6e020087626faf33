"""Documents in JSON lines, tables of fields and plain text, packed or not, as `maskloom shards` reads them."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import zstandard

from maskloom.data.reading.samples import document_from_json
from maskloom.data.sources.inputs import find_sources, read_source
from maskloom.data.sources.source import TextLayout

from .harness import fuzz

MEMORY_BYTES = 256 << 20
"""4096 bytes of zstd may be 128 MiB of text, which is there twice for a moment."""
JSONL = (
    b'{"text": "a line of some words", "id": 3}\n\n{"text": "caf\\u00e9 \\ud83d\\ude00", "meta": {"a": [1, null]}}\r\n'
    + '\ufeff{"text": "\u2028 and \u0085", "x": 1e5}\n{"text": null}\n'.encode()
)
CSV = (
    '\ufeffid,text\r\n1,"a quote ""q"", a comma\nand a line"\n\n2,plain \u2028\r3,\n'.encode()
    + b'4,"\r\n"\n"5","x" y"\n'
)
TEXT = "one line\nand another\n\n \t\nsecond \u2028 document\x0c\r\n\r\nthird\rof carriage returns\r\rend".encode()
WORDS = [
    b'"text"',
    b'{"text": "',
    b'"text": ["a"]',
    b"\\ud800",
    b"\\u0000",
    b"[" * 2000,
    b'{"a":' * 1500,
    b"9" * 5000,
    b"-Infinity",
    b"\x0c",
    b"\n\n",
    b"\r",
    b"\xc0\x80",
    b"\xf4\x90\x80\x80",
    b'"',
    b'""',
    b',"',
    b'"\t',
]
SEEDS = {".jsonl": JSONL, ".csv": CSV, ".tsv": CSV.replace(b",", b"\t"), ".txt": TEXT}
PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize(
    ("name", "layout"),
    [("a.jsonl", "file"), ("a.txt", "file"), ("b.txt", "blank-line"), ("a.csv", "file"), ("a.tsv", "file")],
)
def test_files_of_text(tmp_path: Path, name: str, layout: TextLayout, suffix: str) -> None:
    """Whatever is read is text that can be written again, and its places follow each other."""
    path = tmp_path / (name + suffix)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        before = -1
        for source in find_sources([str(path)]):
            for ordinal, text in read_source(source, "text", layout):
                text.encode()
                assert ordinal > before
                before = ordinal

    seed = PACK[suffix](SEEDS[Path(name).suffix])
    words = [] if suffix else WORDS
    fuzz(read, [seed, seed + seed], words, folder=tmp_path, inputs=200, memory_bytes=MEMORY_BYTES)


def test_lines_of_json() -> None:
    def read(data: bytes) -> None:
        document_from_json(data, "text", "line 1").encode()

    seeds = [line for line in JSONL.split(b"\n") if line.strip() and b"null}" not in line.replace(b"null]}", b"")]
    fuzz(read, seeds, WORDS, inputs=2000, memory_bytes=MEMORY_BYTES)
