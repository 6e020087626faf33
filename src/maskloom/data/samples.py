"""The bytes of a block (or of a whole tar) to documents, through webdataset's own stages.

A byte range of a tar from member to member is itself a tar stream, so `tar_file_expander` and `group_by_keys` read a
block as they read a shard. `.decode()`, which unpickles, is never used. A sample's text is in its `.txt` field, or its
`.jsonl` (a JSON object a line) or `.json` field, whose text stands under `text_key`. A key with dots ("doc.0.txt",
"doc.1.txt") is one sample to webdataset: every such field is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

import webdataset
from webdataset.tariterators import group_by_keys, tar_file_expander

from maskloom.errors import UserError

KINDS = ("txt", "jsonl", "json")  # the first kind that a sample has is its text; a .json beside a .txt is metadata


def read_documents(stream: IO[bytes], url: str, text_key: str) -> Iterator[str]:
    """The documents in a tar stream, in order.

    Raises:
        UserError: naming shard, sample and fault, for text that is not UTF-8, JSON that does not parse, a missing text.
    """
    pipeline = webdataset.DataPipeline(lambda: [{"url": url, "stream": stream}], tar_file_expander, group_by_keys)
    try:
        for sample in pipeline:
            yield from _documents_of(sample, url, text_key)
    except UserError:
        raise
    except Exception as error:  # tarfile and webdataset raise many kinds
        raise UserError(f"shard {url} cannot be read as a webdataset tar: {error}") from error


def document_from_json(line: bytes | str, text_key: str, where: str) -> str:
    """The text of one JSON object. Raises UserError that begins with `where`."""
    try:
        value = json.loads(line)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not valid UTF-8 at byte {error.start} ({error.reason})") from None
    except (ValueError, RecursionError) as error:  # ValueError: also a number of more digits than Python reads
        raise UserError(f"{where}: not valid JSON: {error}") from None
    if isinstance(value, dict) and isinstance(value.get(text_key), str):
        text = str(value[text_key])
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair, which no UTF-8 text can hold
            raise UserError(
                f"{where}: '{text_key}' holds the lone surrogate \\u{ord(text[error.start]):04x} at character "
                f"{error.start}, which is no text: replace it"
            ) from None
        return text
    if not isinstance(value, dict):
        raise UserError(f"{where}: a JSON object is needed, not {type(value).__name__}")
    if text_key in value:
        raise UserError(f"{where}: '{text_key}' holds {type(value[text_key]).__name__}, not text")
    keys = ", ".join(map(repr, value)) or "no key at all"
    raise UserError(f"{where}: no '{text_key}' in the object; it has {keys}: use --text-key")


def decode_text(data: bytes, where: str) -> str:
    """UTF-8 text. Raises UserError that begins with `where` and names the byte."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: not valid UTF-8 at byte {error.start} ({error.reason}): convert the file, for example with iconv"
        ) from None


def _documents_of(sample: dict[str, Any], url: str, text_key: str) -> Iterator[str]:
    where = f"shard {url}, sample '{sample['__key__']}'"
    fields = {name: data for name, data in sample.items() if not name.startswith("__")}
    for kind in KINDS:
        names = [name for name in fields if name.rpartition(".")[2] == kind]
        for name in names:
            if kind == "txt":
                yield decode_text(fields[name], f"{where}.{name}")
            elif kind == "json":
                yield document_from_json(fields[name], text_key, f"{where}.{name}")
            else:
                for number, line in enumerate(fields[name].split(b"\n"), start=1):
                    if line.strip():
                        yield document_from_json(line, text_key, f"{where}.{name} line {number}")
        if names:
            return
