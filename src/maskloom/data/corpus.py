"""Readers: files to documents.

A corpus is a list of `Source`s, each a file or a byte range of one, that can be read in any process. A document is
identified by (source, ordinal), both independent of how the work is dealt out.

- `.jsonl`, `.jsonl.gz`, `.jsonl.zst`: one object a line, the text under `text_key`.
- `.txt`: one document a file, or documents separated by blank lines.
- `documentation:`: the English documentation (docstrings) of the Python packages installed beside this one, read with
  `ast`. It needs no download, and it is real text of some size: what `make pretrain` trains on.
"""

from __future__ import annotations

import ast
import gzip
import io
import sysconfig
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import zstandard

from maskloom.data.order import make_key
from maskloom.data.samples import decode_text, document_from_json
from maskloom.errors import UserError
from maskloom.progress import warn

DOCUMENTATION = "documentation:"
DOCUMENTATION_SOURCE_BYTES = 96 << 20  # of Python source; about a seventh of it is documentation
DOCUMENTATION_GROUP = 64  # files a source
SHORTEST_DOCSTRING = 200  # characters; shorter ones are mostly one-line remarks
COMMON_WORDS = frozenset("the of to a is in and for this be that with are if or as it by on an".split())
RANGE_BYTES = 32 << 20  # plain .jsonl files are read in ranges of this size, by several processes
ZSTD_READ_BYTES = 1 << 20
COMPRESSION_RATIO = 4  # text bytes a compressed byte, as an estimate

TextLayout = Literal["file", "blank-line"]


@dataclass(frozen=True)
class Source:
    """What one process reads at a time.

    Attributes:
        name: file name, or the first of a group of Python files.
        number: place among the corpus's files: with the ordinal it identifies a document.
        bytes: estimated size of the text.
        start, end: byte range of a `.jsonl`; a line belongs to the range in which it begins. `end` -1: the whole file.
    """

    kind: Literal["jsonl", "txt", "documentation"]
    name: str
    number: int
    bytes: int
    start: int = 0
    end: int = -1
    files: tuple[str, ...] = ()


def find_sources(inputs: Sequence[str]) -> list[Source]:
    """Expand files, folders (searched through) and `documentation:` into sources, in an order that does not depend on
    the file system.

    Raises:
        UserError: an input does not exist, holds no text file, or is of a kind that is not read.
    """
    sources: list[Source] = []
    for given in inputs:
        if given == DOCUMENTATION:
            sources += _documentation_sources(len(sources))
            continue
        path = Path(given)
        if not path.exists():
            raise UserError(f"no file or folder {given}")
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        known = [file for file in files if _kind(file)]
        if not known:
            raise UserError(f"{given}: no .txt, .jsonl, .jsonl.gz or .jsonl.zst file there")
        if len(known) < len(files):
            other = next(file for file in files if file not in set(known))
            warn(f"{given}: {len(files) - len(known)} file(s) of other kinds are left out, such as {other}")
        for file in known:
            sources += _file_sources(file, len(sources))
    return sources


def read_source(source: Source, text_key: str, layout: TextLayout) -> Iterator[tuple[int, str]]:
    """(ordinal, text) of each document of a source. Raises UserError naming file and place for bad input."""
    if source.kind == "documentation":
        yield from _read_documentation(source)
    elif source.kind == "jsonl":
        yield from _read_jsonl(source, text_key)
    else:
        text = decode_text(Path(source.name).read_bytes(), source.name)
        documents = [text] if layout == "file" else _split_at_blank_lines(text)
        yield from enumerate(documents)


def _kind(file: Path) -> Literal["jsonl", "txt"] | None:
    name = file.name.lower()
    if name.endswith((".jsonl", ".jsonl.gz", ".jsonl.zst")):
        return "jsonl"
    return "txt" if name.endswith(".txt") else None


def _file_sources(file: Path, number: int) -> list[Source]:
    kind, size = _kind(file), file.stat().st_size
    assert kind is not None
    if kind == "jsonl" and file.suffix == ".jsonl":
        starts = range(0, max(size, 1), RANGE_BYTES)
        # Every range keeps the file's number: a line's ordinal is its byte offset, whichever range it is read in.
        return [
            Source(kind, str(file), number, min(RANGE_BYTES, size - start), start, start + RANGE_BYTES)
            for start in starts
        ]
    estimate = size if kind == "txt" else size * COMPRESSION_RATIO
    return [Source(kind, str(file), number, estimate)]


def _read_jsonl(source: Source, text_key: str) -> Iterator[tuple[int, str]]:
    with _open(source.name) as stream:
        offset = source.start
        if offset:
            # A line that began before this range is the previous range's; reading from one byte earlier also keeps a
            # line that begins exactly here.
            stream.seek(offset - 1)
            offset += len(stream.readline()) - 1
        try:
            for line in stream:
                if 0 <= source.end <= offset:
                    return
                if line.strip():
                    yield offset, document_from_json(line, text_key, f"{source.name}, the line at byte {offset}")
                offset += len(line)
        except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
            raise UserError(f"{source.name} is damaged or cut off after {offset} bytes of text: {error}") from None


def _open(name: str) -> IO[bytes]:
    if name.lower().endswith(".gz"):
        return cast(IO[bytes], gzip.open(name, "rb"))
    if name.lower().endswith(".zst"):
        return io.BufferedReader(_ZstdFrames(name), ZSTD_READ_BYTES)
    return Path(name).open("rb")


class _ZstdFrames(io.RawIOBase):
    """The frames of a .zst file as one stream. Unlike the library's own reader it notices a file that was cut off."""

    def __init__(self, name: str) -> None:
        self.file = io.FileIO(name)
        self.frame: Any = None  # the decompressor of the frame that is open
        self.unread = b""
        self.text = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.text:
            data = self.unread or self.file.read(ZSTD_READ_BYTES)
            if not data:
                if self.frame is not None:
                    raise EOFError("the file ends inside a zstd frame")
                return 0
            self.frame = self.frame or zstandard.ZstdDecompressor().decompressobj()
            self.text = memoryview(self.frame.decompress(data))
            self.unread = self.frame.unused_data if self.frame.eof else b""
            self.frame = None if self.frame.eof else self.frame
        count = min(len(buffer), len(self.text))
        buffer[:count], self.text = self.text[:count], self.text[count:]
        return count

    def close(self) -> None:
        self.file.close()
        super().close()


def _split_at_blank_lines(text: str) -> list[str]:
    documents: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.strip():
            documents[-1].append(line)
        elif documents[-1]:
            documents.append([])
    return ["\n".join(lines) for lines in documents if lines]


def _documentation_sources(number: int) -> list[Source]:
    """Groups of installed Python files: a sample by the hash of their names, up to `DOCUMENTATION_SOURCE_BYTES`."""
    root = Path(sysconfig.get_paths()["purelib"])
    names = [str(file.relative_to(root)) for file in root.rglob("*.py")]
    chosen, total = [], 0
    for name in sorted(names, key=lambda name: (make_key(DOCUMENTATION, name), name)):
        if total >= DOCUMENTATION_SOURCE_BYTES:
            break
        chosen.append(str(root / name))
        total += (root / name).stat().st_size
    if not chosen:
        raise UserError(f"{DOCUMENTATION} no Python file is installed in {root}")
    groups = [
        tuple(chosen[start : start + DOCUMENTATION_GROUP]) for start in range(0, len(chosen), DOCUMENTATION_GROUP)
    ]
    return [
        Source(
            "documentation",
            group[0],
            number + place,
            sum(Path(file).stat().st_size for file in group) // 7,
            files=group,
        )
        for place, group in enumerate(groups)
    ]


def _read_documentation(source: Source) -> Iterator[tuple[int, str]]:
    ordinal = 0
    for file in source.files:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # old string escapes in other people's code
                tree = ast.parse(Path(file).read_bytes())
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue  # a template, or written for another Python: not documentation that can be read
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text and len(text) >= SHORTEST_DOCSTRING and _is_english(text):
                    yield ordinal, text
                    ordinal += 1


def _is_english(text: str) -> bool:
    """Mostly ASCII, mostly letters (no tables, no drawings), and one word in fifteen is one of English's commonest."""
    words = text.lower().split()
    if 4 * sum(letter.isalpha() for letter in text) < 3 * sum(map(len, words)):
        return False
    return (
        text.count("\ufffd") == 0
        and len(text.encode()) < 1.02 * len(text)
        and (15 * sum(word in COMMON_WORDS for word in words) >= len(words))
    )
