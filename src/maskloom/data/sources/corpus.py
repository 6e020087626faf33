"""Inputs to sources, and sources to documents.

A corpus is a list of `Source`s, each a file or a part of one, that can be read in any process. A document is identified
by (number of the source, ordinal), both independent of how the work is dealt out.

- `.jsonl`: one object a line, the text under `text_key` (`lines.py`).
- `.txt`: one document a file, or documents separated by blank lines (`lines.py`). Both also as `.gz` and `.zst`.
- `.parquet`: a column of text (`tables.py`).
- a folder that Hugging Face's `datasets` wrote with `save_to_disk`, and `hf:NAME[:CONFIG]:SPLIT` (`tables.py`).
- `documentation:`: the docstrings of the Python packages installed beside this one (`documentation.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from maskloom.data.sources.compressed import SUFFIXES
from maskloom.data.sources.documentation import DOCUMENTATION, documentation_sources, read_documentation
from maskloom.data.sources.lines import line_sources, read_jsonl, read_text
from maskloom.data.sources.source import Kind, Source, TextLayout, check_unchanged
from maskloom.data.sources.tables import (
    HUB,
    hub_sources,
    is_saved_dataset,
    parquet_sources,
    read_arrow,
    read_parquet,
    saved_sources,
)
from maskloom.errors import UserError
from maskloom.progress import warn
from maskloom.redaction import one_line

SAVED_MARKS = ("dataset_dict.json", "state.json")  # files of a folder that `save_to_disk` wrote
KINDS: dict[str, Kind] = {".jsonl": "jsonl", ".txt": "txt", ".parquet": "parquet"}


def find_sources(inputs: Sequence[str], text_key: str = "text") -> list[Source]:
    """Expand files, folders (searched through), `hf:...` and `documentation:` into sources, in an order that does not
    depend on the file system.

    Raises:
        UserError: an input does not exist, is given twice, cannot be listed, holds no text, is of a kind that is not read,
            or has no column `text_key`.
    """
    sources: list[Source] = []
    taken: dict[str, str] = {}

    def take(found: list[Source]) -> None:
        for name, title in {source.name: source.title for source in found}.items():
            path = os.path.realpath(name)
            if path in taken:
                also = f", also as {taken[path]}" if taken[path] != title else ""
                raise UserError(f"{title} is given twice{also}: its documents would be taken twice. Name it once")
            taken[path] = title
        sources.extend(found)

    for given in inputs:
        if given == DOCUMENTATION:
            take(documentation_sources(len(sources)))
        elif given.startswith(HUB):
            take(hub_sources(given, text_key, len(sources)))
        elif is_saved_dataset(Path(given)):
            take(saved_sources(Path(given), text_key, len(sources)))
        else:
            for file in _find_files(given):
                take(_file_sources(file, text_key, len(sources)))
    return sources


def read_source(source: Source, text_key: str, layout: TextLayout) -> Iterator[tuple[int, str]]:
    """(ordinal, text) of each document of a source.

    Raises:
        UserError: bad input (naming file and place), or a file that changed since its source was listed.
    """
    try:
        yield from _documents(source, text_key, layout)
    except UserError:
        check_unchanged(source)  # a file that is being written ends anywhere: then that is what to say
        raise
    check_unchanged(source)


def _documents(source: Source, text_key: str, layout: TextLayout) -> Iterator[tuple[int, str]]:
    if source.kind == "documentation":
        return read_documentation(source)
    if source.kind == "parquet":
        return read_parquet(source, text_key)
    if source.kind == "arrow":
        return read_arrow(source, text_key)
    return read_jsonl(source, text_key) if source.kind == "jsonl" else read_text(source, layout)


def _find_files(given: str) -> list[Path]:
    path = Path(given)
    if not path.exists():
        raise UserError(f"no file or folder {given}")
    if not path.is_dir() and not path.is_file():  # a pipe would be waited for, and is read twice
        raise UserError(f"{given} is not a file or folder: write what comes from it into a file first")
    files = sorted(_walk(path)) if path.is_dir() else [path]
    for folder in sorted({file.parent for file in files if file.name in SAVED_MARKS}):
        if is_saved_dataset(folder):
            raise UserError(
                f"{folder} is a dataset that `datasets` saved, inside {given}: name it as an INPUT of its own"
            )
    known = [file for file in files if _kind(file)]
    if not known:
        raise UserError(f"{given}: no .txt, .jsonl or .parquet file there (.txt and .jsonl also as .gz or .zst)")
    if len(known) < len(files):
        other = next(file for file in files if not _kind(file))
        warn(f"{given}: {len(files) - len(known)} file(s) of other kinds are left out, such as {one_line(str(other))}")
    return known


def _walk(root: Path) -> Iterator[Path]:
    """All files below a folder, through links as well; a folder that several links lead to is read once, which also
    ends loops."""
    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, onerror=_refuse_unlisted, followlinks=True):
        folders.sort()  # of two links to one folder the first by name is followed, on every file system
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


def _kind(file: Path) -> Kind | None:
    name = file.name.lower()
    kind = KINDS.get(Path(name).suffix)
    if kind is None and name.endswith(SUFFIXES):
        kind = KINDS.get(Path(Path(name).stem).suffix)
        return kind if kind in ("jsonl", "txt") else None
    return kind


def _file_sources(file: Path, text_key: str, number: int) -> list[Source]:
    kind = _kind(file)
    assert kind is not None
    return parquet_sources(file, text_key, number) if kind == "parquet" else line_sources(file, kind, number)
