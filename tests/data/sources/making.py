"""Inputs, and the documents that are read from them, for the tests of this folder."""

from __future__ import annotations

import gzip
import json

import zstandard

from maskloom.data.sources.inputs import find_sources, read_source
from maskloom.data.sources.source import TextLayout

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
