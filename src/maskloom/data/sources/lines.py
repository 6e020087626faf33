"""Documents in files of lines: JSON lines and plain text, compressed or not.

A line of text ends with a line feed, a carriage return, or both (Python's universal newlines), and with nothing else. Form
feeds, U+0085 and U+2028 are characters of a line, though `str.splitlines` would cut there. A line of JSON ends with a line
feed, and white space around it is ignored. A byte order mark at the beginning of a file is not text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

from maskloom.data.reading.samples import decode_text, document_from_json
from maskloom.data.sources.compressed import DAMAGE, READ_BYTES, SUFFIXES, open_text
from maskloom.data.sources.source import LONGEST_TEXT_BYTES, RANGE_BYTES, Source, SourceKind, TextLayout, file_stamp
from maskloom.errors import UserError

COMPRESSION_RATIO = 4  # text bytes a compressed byte, an estimate
SKIP_BYTES = 1 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def text_sources(given: str, text_key: str, number: int) -> list[Source]:
    """The source of one `.txt` file."""
    return [whole_file("txt", Path(given), number)]


def jsonl_sources(given: str, text_key: str, number: int) -> list[Source]:
    """The sources of one `.jsonl` file. A big file is read in several parts, but not if it is compressed."""
    file = Path(given)
    whole = whole_file("jsonl", file, number, "the line at byte")
    if file.name.lower().endswith(SUFFIXES):
        return [whole]
    # Every range keeps the file's number: a line's ordinal is its byte offset, whichever range it is read in.
    return [
        replace(whole, bytes=min(RANGE_BYTES, whole.bytes - start), start=start, end=start + RANGE_BYTES)
        for start in range(0, max(whole.bytes, 1), RANGE_BYTES)
    ]


def whole_file(kind: str, file: Path, number: int, unit: str = "document") -> Source:
    size, stamp = file.stat().st_size, file_stamp(file)
    if file.name.lower().endswith(SUFFIXES):
        return Source(kind, str(file), number, size * COMPRESSION_RATIO, stamp, unit=unit, input_bytes=size)
    return Source(kind, str(file), number, size, stamp, unit=unit)


def read_jsonl(source: Source, text_key: str, layout: TextLayout) -> Iterator[tuple[int, str]]:
    """(byte offset of the line, text) of each line of a range. A null is an empty text.

    Raises:
        UserError: with file and byte, if a line is not such an object or absurdly long, or the file is damaged.
    """
    with open_text(source.name) as stream:
        offset = source.start
        if offset:
            # A line that began earlier belongs to the previous range. Start one byte early, or we would skip a line that begins
            # exactly here.
            stream.seek(offset - 1)
            offset += _skip_line(stream) - 1
        for start, line in lines_at(stream, source, offset):
            if 0 <= source.end <= start:
                return
            if line.strip() not in (b"", BYTE_ORDER_MARK):
                yield start, _text_of(line, text_key, source.place(start))


def read_text(source: Source, text_key: str, layout: TextLayout) -> Iterator[tuple[int, str]]:
    """(ordinal, text) of the documents of a `.txt` file: one, or those between blank lines.

    Raises:
        UserError: with file and byte, if text is not UTF-8 or absurdly long, or the file is damaged.
    """
    with open_text(source.name) as stream:
        if layout == "file":
            yield 0, decode_text(_whole(stream, source), source.name).removeprefix("\ufeff")
        else:
            yield from enumerate(_split_at_blank_lines(stream, source))


def _whole(stream: IO[bytes], source: Source) -> bytes:
    """All of a stream, read in parts: Python would allocate at once whatever size we asked for."""
    data = bytearray()
    try:
        while part := stream.read(READ_BYTES):
            data += part
            if len(data) > LONGEST_TEXT_BYTES:
                raise _too_long(source, "one document", "If documents are separated by blank lines, use --blank-line")
    except DAMAGE as error:
        raise _damaged(source, len(data), error) from None
    return bytes(data)


def _split_at_blank_lines(stream: IO[bytes], source: Source) -> Iterator[str]:
    document: list[str] = []
    size = 0
    for offset, line in lines_at(stream, source, 0):
        where = source.name if offset == 0 else f"{source.name}, the line at byte {offset}"
        for text in _lines_of(decode_text(line, where), is_first=offset == 0):
            if text.strip():
                document.append(text)
                size += len(text)
                if size > LONGEST_TEXT_BYTES:
                    raise _too_long(source, f"the document around byte {offset}", "Put blank lines into it")
            elif document:
                yield "\n".join(document)
                document, size = [], 0
    if document:
        yield "\n".join(document)


def _lines_of(text: str, is_first: bool) -> list[str]:
    """The lines of a text that ends with a line feed. Carriage returns may end more lines in it."""
    text = text.removeprefix("\ufeff") if is_first else text
    return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")


def lines_at(stream: IO[bytes], source: Source, offset: int) -> Iterator[tuple[int, bytes]]:
    """(byte offset, line) from `offset` on, which is the stream's position."""
    try:
        while line := stream.readline(LONGEST_TEXT_BYTES + 1):
            if len(line) > LONGEST_TEXT_BYTES:
                raise _too_long(source, f"the line at byte {offset}", "Are its line ends missing?")
            yield offset, line
            offset += len(line)
    except DAMAGE as error:
        raise _damaged(source, offset, error) from None


def _skip_line(stream: IO[bytes]) -> int:
    """Read to the end of a line, in parts, since it may be longer than the memory. Returns the number of bytes."""
    skipped = 0
    while part := stream.readline(SKIP_BYTES):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


def _text_of(line: bytes, text_key: str, where: str) -> str:
    try:
        return document_from_json(line, text_key, where)
    except UserError:
        # A null is a row without text, as in tables. Look for it only here, so that good lines stay fast.
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict) and text_key in value and value[text_key] is None:
            return ""
        raise


def _damaged(source: Source, offset: int, error: Exception) -> UserError:
    return UserError(f"{source.name} is damaged or cut off after {offset} bytes of text: {error}")


def _too_long(source: Source, what: str, advice: str) -> UserError:
    return UserError(f"{source.name}: {what} has more than {LONGEST_TEXT_BYTES} bytes. {advice}")


TEXT_KIND = SourceKind("txt", "a text file", text_sources, read_text, (".txt",), may_be_compressed=True)
JSONL_KIND = SourceKind("jsonl", "a file of JSON lines", jsonl_sources, read_jsonl, (".jsonl",), may_be_compressed=True)
