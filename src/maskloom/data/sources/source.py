"""What one process reads at a time: a file, or a part of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from maskloom.errors import UserError

RANGE_BYTES = 32 << 20  # of text; bigger files are read in parts of about this size, by several processes
LONGEST_TEXT_BYTES = 1 << 30  # one line or document; more is a file without line ends, or an attack

FINGERPRINT = "fingerprint "  # begins the stamp of a file in a cache, which has other times on every machine

Kind = Literal["jsonl", "txt", "parquet", "arrow", "documentation"]
TextLayout = Literal["file", "blank-line"]


@dataclass(frozen=True)
class Source:
    """A part of the input.

    Attributes:
        name: path of the file, or of the first of a group of Python files.
        number: place among the corpus's files: with the ordinal it identifies a document.
        bytes: estimated size of the text.
        input_bytes: size of what is read, where it is not about that of its text.
        stamp: changes when the file changes: its size and time, or what stands for them where a copy on another machine
            has another time.
        start, end: part of the file: bytes of a `.jsonl` (a line belongs to the range in which it begins), row groups of
            a `.parquet`, rows of an Arrow file. `end` -1: the whole file.
        first: ordinal of the first document, where documents are rows of a table.
        label: how messages call it, where its path says nothing to the user.
    """

    kind: Kind
    name: str
    number: int
    bytes: int
    stamp: str
    start: int = 0
    end: int = -1
    first: int = 0
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


def file_stamp(file: Path) -> str:
    """Size and time of a file, which tell whether it changed."""
    status = file.stat()
    return f"{status.st_size} bytes of {status.st_mtime_ns / 1e9:.6f}"


def group_stamp(files: Sequence[str]) -> str:
    """What tells whether a group of Python files changed: packages are installed at other times on every machine."""
    return f"{sum(Path(file).stat().st_size for file in files)} bytes of Python"


def check_unchanged(source: Source) -> None:
    """Raises UserError where a file is no longer what it was when the sources were listed: the documents of two states
    would be mixed, and some be missing."""
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


def place_of(source: Source, ordinal: int) -> str:
    """Where a document stands, for messages and the report."""
    if source.kind == "jsonl":
        return f"{source.title}, the line at byte {ordinal}"
    unit = "row" if source.kind in ("parquet", "arrow") else "document"
    return f"{source.title}, {unit} {ordinal}"
