"""CSV and TSV files: the fields that pandas reads, and errors that name file and line."""

from __future__ import annotations

import csv
import gzip
import warnings
from pathlib import Path

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.data.sources.inputs import find_sources, read_source
from maskloom.errors import UserError

ATOMS = ["a", "b c", ",", '"', '""', '",', ',"', "\t", "\n", "\r\n", " ", "é", "\u2028", "'", "\\"]
# Not a carriage return alone: behind one, pandas takes white space for a row or skips it, as it happens.
SEPARATORS = {"csv": ",", "tsv": "\t"}


def rows(path: Path, text_key: str = "text") -> list[tuple[int, str]]:
    """(line, text) of every document."""
    return [row for source in find_sources([str(path)], text_key) for row in read_source(source, text_key, "file")]


def texts(path: Path, text_key: str = "text") -> list[str]:
    return [text for _, text in rows(path, text_key)]


def by_pandas(path: Path, separator: str) -> list[str] | None:
    """The column `text` as pandas reads it; None if it refuses the file or drops fields of a row."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", pandas.errors.ParserWarning)
        try:
            table = pandas.read_csv(path, sep=separator, keep_default_na=False, index_col=False, dtype=str)
        except (pandas.errors.ParserError, pandas.errors.ParserWarning):
            return None
    return table["text"].tolist()


@pytest.mark.parametrize("kind", SEPARATORS)
@settings(max_examples=150, deadline=None)
@given(body=st.lists(st.sampled_from(ATOMS), max_size=14).map("".join))
def test_files_are_read_as_pandas_reads_them(tmp_path_factory: pytest.TempPathFactory, kind: str, body: str) -> None:
    """Whatever pandas reads, with the same blank rows skipped; and what it refuses is refused."""
    path = tmp_path_factory.getbasetemp() / f"any.{kind}"
    path.write_bytes(f"id{SEPARATORS[kind]}text\n{body}\n".encode())
    expected = by_pandas(path, SEPARATORS[kind])
    if expected is None:
        with pytest.raises(UserError, match="row at line"):
            texts(path)
    else:
        assert texts(path) == expected


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@settings(max_examples=30, deadline=None)
@given(written=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20), max_size=9))
def test_what_pandas_wrote_comes_back(
    tmp_path_factory: pytest.TempPathFactory, quoting: int, written: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.csv"
    table = pandas.DataFrame({"id": range(len(written)), "text": written})
    table.to_csv(path, index=False, quoting=quoting, lineterminator="\r\n")
    assert texts(path) == written


def test_a_row_is_known_by_the_line_it_begins_in(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbftext\n\n"two\nlines"\rthree\r\n  \n""\nNA\n')
    assert rows(path) == [(3, "two\nlines"), (5, "three"), (7, ""), (8, "NA")]
    packed = tmp_path / "a.csv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert rows(packed) == rows(path)
    assert find_sources([str(path)])[0].place(8) == f"{path}, the row at line 8"


def test_a_field_may_be_long(tmp_path: Path) -> None:
    """The module's own limit is 128 KiB, and stays so for others."""
    before = csv.field_size_limit()
    path = tmp_path / "a.tsv"
    text = "a word " * 40_000
    path.write_text(f'id\ttext\n1\t"{text}"\n2\t{text}\n')
    assert texts(path) == [text, text]
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty: its first row has to name the columns, one of them 'text'"),
        (b"\n \n", "is empty"),
        (b"id,body\n1,a\n", "no column 'text'; its first row names 'id', 'body': use --text-key"),
        (b"text,text\n1,a\n", "2 columns 'text'"),
        (b"text\na\nb,c\n", r"the row at line 3: 2 fields, but the first row names 1 columns"),
        (b'text\na\n"b\n\nc\n', "the row at line 3: a quote .* is never closed"),
        (b"text\na\xff\n", "not valid UTF-8"),
    ],
)
def test_bad_files_are_refused_with_the_line(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"{path}.*{said}"):
        texts(path)


def test_a_packed_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"text\n" + b"a\n" * 99)[:-9])
    with pytest.raises(UserError, match="damaged or cut off"):
        texts(path)
