"""What one process reads at a time: a file, or a part of one; and what a kind of source has to say of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from maskloom.errors import UserError

RANGE_BYTES = 32 << 20  # of text; bigger files are read in parts of about this size, by several processes
LONGEST_TEXT_BYTES = 1 << 30  # one line or document; more is a file without line ends, or an attack

FINGERPRINT = "fingerprint "  # begins the stamp of a file in a cache: its time differs on every machine

TextLayout = Literal["file", "blank-line"]


@dataclass(frozen=True)
class Source:
    """A part of the input.

    Attributes:
        kind: name of its `SourceKind`.
        name: path of the file, or of the first of a group of Python files.
        number: place among the corpus's files. With the ordinal it identifies a document.
        bytes: estimated size of the text.
        stamp: changes when the file changes. It is the file's size and time, or a fingerprint if copies on other machines have
            other times.
        start, end: part of the file: bytes of a `.jsonl` (a line belongs to the range in which it begins), row groups of
            a `.parquet`, rows of an Arrow file. `end` -1: the whole file.
        first: ordinal of the first document, if documents are rows of a table.
        unit: what messages call a document and its ordinal: "row", "the line at byte".
        label: what messages call the source, if its path says nothing to the user.
        input_bytes: size of what is read. 0: about that of its text.
    """

    kind: str
    name: str
    number: int
    bytes: int
    stamp: str
    start: int = 0
    end: int = -1
    first: int = 0
    unit: str = "document"
    label: str = ""
    files: tuple[str, ...] = ()
    input_bytes: int = 0

    @property
    def work_bytes(self) -> int:
        """What reading is measured by."""
        return self.input_bytes or self.bytes

    @property
    def title(self) -> str:
        return self.label or self.name

    def place(self, ordinal: int) -> str:
        """Where a document stands, for messages and the report."""
        return f"{self.title}, {self.unit} {ordinal}"


def never(given: str) -> bool:
    """Of a kind that only files have."""
    return False


@dataclass(frozen=True)
class SourceKind:
    """A kind of source: a file of this folder defines it, and a row of `inputs.KINDS` adds it.

    Attributes:
        name: its name in `Source.kind`.
        title: what messages call an input of this kind.
        find: (INPUT or path of a file, text key, number of the first source) -> the sources in it.
        read: (source, text key, layout) -> (ordinal, text) of each document. Raises UserError for bad input.
        suffixes: of files of this kind, in lower case. Such files are found in folders too.
        may_be_compressed: they are also read with .gz or .zst behind the suffix.
        takes: whether an INPUT is of this kind as a whole, whatever files it has.
        holds_copies: the same text is in it many times, so that exact duplicates are always dropped.
    """

    name: str
    title: str
    find: Callable[[str, str, int], list[Source]]
    read: Callable[[Source, str, TextLayout], Iterator[tuple[int, str]]]
    suffixes: tuple[str, ...] = ()
    may_be_compressed: bool = False
    takes: Callable[[str], bool] = never
    holds_copies: bool = False


def file_stamp(file: Path) -> str:
    """Size and time of a file: they tell whether it changed."""
    status = file.stat()
    return f"{status.st_size} bytes of {status.st_mtime_ns / 1e9:.6f}"


def group_stamp(files: Sequence[str]) -> str:
    """Size of a group of Python files. Times would differ on every machine that installs the packages."""
    return f"{sum(Path(file).stat().st_size for file in files)} bytes of Python"


def check_unchanged(source: Source) -> None:
    """Raises UserError if a file changed since the sources were listed: documents of two states would be mixed, and some would
    be missing."""
    if source.stamp.startswith(FINGERPRINT):
        return
    try:
        found = group_stamp(source.files) if source.files else file_stamp(Path(source.name))
    except FileNotFoundError:
        found = "not there any more"
    if found != source.stamp:
        raise UserError(
            f"{source.title} changed while it was read: {source.stamp} at first, then {found}. Start again when nothing "
            "writes to the input"
        )
