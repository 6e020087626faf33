"""Inputs to sources, and sources to documents.

A corpus is a list of `Source`s, each a file or a part of one. Any process can read one. A document is identified by (number of
its source, ordinal). Both are the same however the work is shared out.

A new kind of source is one file of this folder and one row of `KINDS`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from maskloom.data.sources.compressed import SUFFIXES
from maskloom.data.sources.delimited import CSV_KIND, TSV_KIND
from maskloom.data.sources.documentation import DOCUMENTATION_KIND
from maskloom.data.sources.lines import JSONL_KIND, TEXT_KIND
from maskloom.data.sources.source import Source, SourceKind, TextLayout, check_unchanged
from maskloom.data.sources.tables import DATASET_KIND, PARQUET_KIND
from maskloom.errors import UserError
from maskloom.progress import warn
from maskloom.redaction import one_line

KINDS: dict[str, SourceKind] = {
    kind.name: kind
    for kind in (
        TEXT_KIND,  # .txt: one document a file, or documents between blank lines
        JSONL_KIND,  # .jsonl: an object a line
        CSV_KIND,  # .csv: a row of fields between commas
        TSV_KIND,  # .tsv: the same with tabs
        PARQUET_KIND,  # .parquet: a column of text
        DATASET_KIND,  # a folder that `save_to_disk` wrote, or hf:NAME[:CONFIG]:SPLIT
        DOCUMENTATION_KIND,  # documentation: the docstrings of the installed packages
    )
}


def find_sources(inputs: Sequence[str], text_key: str = "text") -> list[Source]:
    """The sources in files, folders (with all folders below them) and inputs such as `hf:...`, in an order that does not
    depend on the file system.

    Raises:
        UserError: an input does not exist, is given twice, cannot be listed, holds no text, is of a kind that is not read,
            or has no column `text_key`.
    """
    sources: list[Source] = []
    taken: dict[str, str] = {}

    def take(found: list[Source]) -> None:
        for name, title in {source.name: source.title for source in found}.items():
            path = os.path.realpath(name)  # two names may be links to one file
            if path in taken:
                also = f", also as {taken[path]}" if taken[path] != title else ""
                raise UserError(f"{title} is given twice{also}: its documents would be taken twice. Name it once")
            taken[path] = title
        sources.extend(found)

    for given in inputs:
        if kind := input_kind(given):
            take(kind.find(given, text_key, len(sources)))
        else:
            for file, kind in _find_files(given):
                take(kind.find(str(file), text_key, len(sources)))
    return sources


def input_kind(given: str) -> SourceKind | None:
    """The kind of an INPUT that is read as a whole. None: a file, or a folder of files."""
    return next((kind for kind in KINDS.values() if kind.takes(given)), None)


def read_source(source: Source, text_key: str, layout: TextLayout) -> Iterator[tuple[int, str]]:
    """(ordinal, text) of each document of a source.

    Raises:
        UserError: bad input (naming file and place), or a file that changed since its source was listed.
    """
    try:
        yield from KINDS[source.kind].read(source, text_key, layout)
    except UserError:
        check_unchanged(source)  # a file that someone is writing may end anywhere: then say that
        raise
    check_unchanged(source)


def _find_files(given: str) -> list[tuple[Path, SourceKind]]:
    path = Path(given)
    if not path.exists():
        raise UserError(f"no file or folder {given}")
    if not path.is_dir() and not path.is_file():  # a pipe never ends by itself, and the file is read twice
        raise UserError(f"{given} is not a file or folder: write what comes from it into a file first")
    files = sorted(_walk(path)) if path.is_dir() else [path]
    for folder in sorted({file.parent for file in files} - {path.parent}):
        if kind := input_kind(str(folder)):
            raise UserError(f"{folder} is {kind.title}, inside {given}: name it as an INPUT of its own")
    kinds = {file: _file_kind(file) for file in files}
    known = [(file, kind) for file, kind in kinds.items() if kind]
    if not known:
        suffixes = [suffix for kind in KINDS.values() for suffix in kind.suffixes]
        packed = [suffix for kind in KINDS.values() if kind.may_be_compressed for suffix in kind.suffixes]
        raise UserError(
            f"{given}: no {_listed(suffixes)} file there ({_listed(packed, 'and')} also as {_listed(SUFFIXES)})"
        )
    if len(known) < len(files):
        other = next(file for file, kind in kinds.items() if not kind)
        warn(f"{given}: {len(files) - len(known)} file(s) of other kinds are left out, such as {one_line(str(other))}")
    return known


def _walk(root: Path) -> Iterator[Path]:
    """All files below a folder, also through links. A folder that several links lead to is read once, so loops end."""
    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, onerror=_refuse_unlisted, followlinks=True):
        folders.sort()  # so that every file system follows the same one of two links to a folder
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        yield from (file for name in files if (file := Path(folder, name)).is_file())


def _refuse_unlisted(error: OSError) -> None:
    raise UserError(
        f"the folder {error.filename} cannot be listed ({error.strerror}), so that its text would be missing: make it "
        "readable, or name the files and folders beside it"
    )


def _file_kind(file: Path) -> SourceKind | None:
    name = Path(file.name.lower())
    is_compressed = name.suffix in SUFFIXES
    suffix = Path(name.stem).suffix if is_compressed else name.suffix
    kind = next((kind for kind in KINDS.values() if suffix in kind.suffixes), None)
    return None if kind and is_compressed and not kind.may_be_compressed else kind


def _listed(words: Sequence[str], last: str = "or") -> str:
    """`a, b or c`."""
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
