"""Documents in the rows of `.csv` and `.tsv` files, compressed or not.

The first row names the columns. Quotes are read as pandas reads them: a field that begins with `"` ends at the next `"`, and
may hold separators and line ends; `""` in it is one quote. A quote inside of another field is a character. Rows that are blank
are skipped. Unlike in pandas, words such as NA and null are text, and a row with more fields than there are columns is refused.

A line end may belong to a field, so one process reads a whole file: nobody can tell from the middle which it is.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Generator, Iterator
from pathlib import Path

from maskloom.data.reading.samples import decode_text
from maskloom.data.sources.compressed import open_text
from maskloom.data.sources.lines import lines_at, whole_file
from maskloom.data.sources.source import LONGEST_TEXT_BYTES, Source, SourceKind, TextLayout
from maskloom.errors import UserError

LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|\Z)")


def csv_sources(given: str, text_key: str, number: int) -> list[Source]:
    """The source of one `.csv` file. Raises UserError if it has no column `text_key`."""
    return _sources("csv", given, text_key, number)


def tsv_sources(given: str, text_key: str, number: int) -> list[Source]:
    """The source of one `.tsv` file. Raises UserError if it has no column `text_key`."""
    return _sources("tsv", given, text_key, number)


def read_delimited(source: Source, text_key: str, layout: TextLayout) -> Iterator[tuple[int, str]]:
    """(number of the line, from 1, text) of each row. A row that ends before the column is an empty document.

    Raises:
        UserError: with file and line, if a quote is never closed, a row has too many fields, or text is not UTF-8 or
            absurdly long; or if the file is damaged.
    """
    rows = rows_of(source)
    try:
        _, columns = next(rows)
        place = _place(columns, text_key, source)
        for line, row in rows:
            if len(row) > len(columns):
                raise UserError(
                    f"{source.place(line)}: {len(row)} fields, but the first row names {len(columns)} columns: put text "
                    'with separators into quotes ("), and write a quote in it as ""'
                )
            yield line, row[place] if place < len(row) else ""
    finally:
        rows.close()


def _sources(kind: str, given: str, text_key: str, number: int) -> list[Source]:
    source = whole_file(kind, Path(given), number, "the row at line")
    rows = rows_of(source)
    header = next(rows, None)
    rows.close()
    if header is None:
        raise UserError(f"{given} is empty: its first row has to name the columns, one of them '{text_key}'")
    _place(header[1], text_key, source)
    return [source]


def _place(columns: list[str], text_key: str, source: Source) -> int:
    if columns.count(text_key) == 1:
        return columns.index(text_key)
    problem = f"{columns.count(text_key)} columns '{text_key}'" if text_key in columns else f"no column '{text_key}'"
    shown = ", ".join(repr(column[:100]) for column in columns[:20])
    raise UserError(f"{source.name}: {problem}; its first row names {shown}: use --text-key")


class _Lines:
    """The lines of a file for `csv.reader`, with their ends, but for blank ones between rows.

    Attributes:
        count: lines read.
        in_row: those of the row that is open.
    """

    def __init__(self, source: Source) -> None:
        self.source, self.count, self.in_row = source, 0, 0
        self.separator = "\t" if source.kind == "tsv" else ","
        self.blank = " \t\r\n".replace(self.separator, "")
        self.stream = open_text(source.name)
        self.lines = self._split()

    def _split(self) -> Generator[str]:
        for offset, line in lines_at(self.stream, self.source, 0):
            text = decode_text(line, f"{self.source.name}, the line at byte {offset}")
            text = text.removeprefix("\ufeff") if offset == 0 else text
            # The module takes a carriage return that is not at the end of a line for a mistake.
            yield from (match[0] for match in LINE.finditer(text) if match[0])

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        try:
            line = next(self.lines)
            while not self.in_row and not line.strip(self.blank):
                self.count += 1
                line = next(self.lines)
        except StopIteration:
            if self.in_row:
                first = self.count - self.in_row + 1
                raise UserError(
                    f'{self.source.place(first)}: a quote (") opens in it and is never closed: close it, or put the field '
                    'into quotes and write each quote in it as ""'
                ) from None
            raise
        self.count += 1
        self.in_row += 1
        return line

    def close(self) -> None:
        self.lines.close()
        self.stream.close()


def rows_of(source: Source) -> Generator[tuple[int, list[str]]]:
    """(number of its first line, fields) of each row, the one that names the columns too. Close it if you do not use it up.

    Raises:
        UserError: as `read_delimited`, but for the number of fields.
    """
    lines = _Lines(source)
    reader = csv.reader(lines, delimiter=lines.separator)
    try:
        while (row := _next_row(reader)) is not None:
            first, lines.in_row = lines.count - lines.in_row + 1, 0
            yield first, row
    except csv.Error as error:
        raise UserError(f"{source.place(lines.count - lines.in_row + 1)} cannot be read: {error}") from None
    finally:
        lines.close()


def _next_row(reader: Iterator[list[str]]) -> list[str] | None:
    """The next row, of fields of any length. The module's limit is one for the whole process: others keep theirs."""
    before = csv.field_size_limit(LONGEST_TEXT_BYTES)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(before)


CSV_KIND = SourceKind("csv", "a CSV file", csv_sources, read_delimited, (".csv",), may_be_compressed=True)
TSV_KIND = SourceKind("tsv", "a TSV file", tsv_sources, read_delimited, (".tsv",), may_be_compressed=True)
