"""Documents in the rows of tables: Parquet files and Hugging Face datasets, both read through Arrow.

Several processes read a big table: each takes some row groups of a Parquet file, or some rows of an Arrow file, which is mapped
into memory. Hugging Face's `datasets` finds a dataset and prepares its Arrow files. The reading processes open those files
without it. A row without text (null) is an empty document.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute
import pyarrow.parquet

from maskloom.data.sources.source import (
    FINGERPRINT,
    LONGEST_TEXT_BYTES,
    RANGE_BYTES,
    Source,
    SourceKind,
    TextLayout,
    file_stamp,
)
from maskloom.errors import UserError

HUB = "hf:"
ROWS_AT_ONCE = 1024
PLAIN = re.compile(r"[^:/\[\]]+")  # a split, or a configuration
PART_OF_SPLIT = re.compile(r":[^:/\[\]]+\[[^/\[\]]*\]")  # ":train[:10]"
PATTERN = re.compile(r"[\[\]*?]")


def parquet_sources(given: str, text_key: str, number: int) -> list[Source]:
    """Groups of row groups of about `RANGE_BYTES` of text.

    Raises:
        UserError: it is not a Parquet file, or has no column of text under `text_key`.
    """
    try:
        with pyarrow.parquet.ParquetFile(given) as table:
            metadata, schema = table.metadata, table.schema_arrow
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(given, error) from None
    _check_column(schema, text_key, given)
    leaves = [metadata.schema.column(place) for place in range(metadata.num_columns)]
    # Compare both: a field `b` of a struct `a` has the path "a.b", as has a column of that name.
    column = next(place for place, leaf in enumerate(leaves) if leaf.name == leaf.path == text_key)
    groups = [metadata.row_group(place) for place in range(metadata.num_row_groups)]
    sizes = [(group.num_rows, group.column(column).total_uncompressed_size) for group in groups]
    stamp = file_stamp(Path(given))
    return [
        Source("parquet", given, number, size, stamp, start, end, first, unit="row")
        for start, end, first, size in _ranges(sizes)
    ]


def read_parquet(source: Source, text_key: str, layout: TextLayout) -> Iterator[tuple[int, str]]:
    """(row, text) of some row groups. Raises UserError naming file and row for bad text, or a damaged file."""
    try:
        with pyarrow.parquet.ParquetFile(source.name, page_checksum_verification=True) as table:
            groups = list(range(source.start, source.end))
            batches = table.iter_batches(ROWS_AT_ONCE, row_groups=groups, columns=[text_key], use_threads=False)
            yield from _texts((batch.column(text_key) for batch in batches), source, text_key)
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(source.name, error) from None


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets` saved this folder with `save_to_disk`."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def is_dataset(given: str) -> bool:
    """Whether an INPUT is a dataset of Hugging Face: a folder that was saved, or `hf:NAME[:CONFIG]:SPLIT`."""
    return given.startswith(HUB) or is_saved_dataset(Path(given))


def dataset_sources(given: str, text_key: str, number: int) -> list[Source]:
    """The rows of a dataset of Hugging Face. Raises as `saved_sources` and `hub_sources`."""
    if given.startswith(HUB):
        return hub_sources(given, text_key, number)
    return saved_sources(Path(given), text_key, number)


def saved_sources(folder: Path, text_key: str, number: int) -> list[Source]:
    """The rows of a folder that `save_to_disk` wrote.

    Raises:
        UserError: it holds several splits, cannot be opened, or has no column of text under `text_key`.
    """
    import datasets

    try:
        found = datasets.load_from_disk(str(folder))
    except IndexError:  # what `datasets` raises if no rows were saved
        raise UserError(f"{folder} is a dataset without rows: leave it out") from None
    except (ValueError, OSError, KeyError, pyarrow.ArrowException) as error:
        raise UserError(f"{folder} cannot be opened as a dataset: {_first_line(error)}") from None
    if isinstance(found, datasets.DatasetDict):
        if len(found) != 1:
            raise UserError(
                f"{folder} holds the splits {', '.join(found)}: name the folder of one, such as {folder / next(iter(found))}"
            )
        found = next(iter(found.values()))
    files = [Path(entry["filename"]) for entry in found.cache_files]
    return _arrow_sources(
        [(file, str(file), file_stamp(file)) for file in files], found.num_rows, str(folder), text_key, number
    )


def hub_sources(given: str, text_key: str, number: int) -> list[Source]:
    """The rows of `hf:NAME[:CONFIG]:SPLIT`: a dataset of the Hugging Face hub, or a local folder that `datasets` reads.

    It is downloaded and prepared once, into the cache of `datasets`.

    Raises:
        UserError: it is not found, cannot be read, or has no column of text under `text_key`.
    """
    import datasets

    name, parts = _hub_parts(given)
    if is_saved_dataset(Path(name)):
        raise UserError(f"{given}: `datasets` saved this folder with `save_to_disk`: name it without '{HUB}', {name}")
    if Path(name).is_dir() and PATTERN.search(str(Path(name).resolve())):
        raise UserError(
            f"{given}: in the path of a folder, `datasets` takes [, ], * and ? for a pattern and reads other files or none. "
            f"Rename the folder, or name it without '{HUB}' if its files are .parquet, .jsonl or .txt"
        )
    try:
        found = datasets.load_dataset(name, *parts[:-1], split=parts[-1])
    except Exception as error:  # every format has errors of its own
        raise UserError(f"{given}: {_first_line(error)}") from None
    files = [Path(entry["filename"]) for entry in found.cache_files]
    # Every machine has its cache in another place, with other times.
    stamp = f"{FINGERPRINT}{found._fingerprint}"
    return _arrow_sources([(file, given, stamp) for file in files], found.num_rows, given, text_key, number)


def _hub_parts(given: str) -> tuple[str, list[str]]:
    """Name and [configuration,] split of `hf:NAME[:CONFIG]:SPLIT`. The path of a folder may have colons and brackets."""
    text = given.removeprefix(HUB)
    for count in (1, 2):
        name, *parts = text.rsplit(":", count)
        if len(parts) == count and all(map(PLAIN.fullmatch, parts)) and name and Path(name).is_dir():
            return name, parts
    if text and Path(text).is_dir():
        raise UserError(f"{given}: the folder needs the name of a split too, such as {given}:train")
    if PART_OF_SPLIT.search(text):
        raise UserError(
            f"{given}: a part of a split is not read: name the whole split, or save the part with `save_to_disk`"
        )
    name, *parts = text.split(":")
    if not name or len(parts) not in (1, 2) or not all(parts):
        raise UserError(
            f"'{given}' is not {HUB}NAME:SPLIT or {HUB}NAME:CONFIG:SPLIT, such as {HUB}roneneldan/TinyStories:train"
        )
    return name, parts


def read_arrow(source: Source, text_key: str, layout: TextLayout) -> Iterator[tuple[int, str]]:
    """(row, text) of some rows of an Arrow file. Raises UserError naming file and row for bad text."""
    try:
        yield from _texts(_arrow_columns(source, text_key), source, text_key)
    except pyarrow.ArrowException as error:
        raise _damaged(source.name, error) from None


def _arrow_sources(
    files: Iterable[tuple[Path, str, str]], rows: int, title: str, text_key: str, number: int
) -> list[Source]:
    """The sources of a dataset. All its files share one number, and rows are counted through all of them."""
    sources: list[Source] = []
    first = 0
    for file, label, stamp in files:
        try:
            with pyarrow.memory_map(str(file)) as mapped, pyarrow.ipc.open_stream(mapped) as stream:
                _check_column(stream.schema, text_key, title)
                sizes = [(batch.num_rows, batch.column(text_key).nbytes) for batch in stream]
        except (pyarrow.ArrowException, OSError) as error:
            raise _damaged(str(file), error) from None
        start_row = 0  # in this file; `first` counts through all files
        for start, end, _, size in _ranges(sizes):
            count = sum(batch_rows for batch_rows, _ in sizes[start:end])
            sources.append(
                Source(
                    "arrow",
                    str(file),
                    number,
                    size,
                    stamp,
                    start_row,
                    start_row + count,
                    first + start_row,
                    "row",
                    label,
                )
            )
            start_row += count
        first += start_row
    if first != rows:  # a selection or an order is kept beside the files, which we do not read
        raise UserError(
            f"{title}: the dataset has {rows} rows and its files hold {first}. One that was cut or reordered cannot be read "
            "as it is: save it with `save_to_disk` first"
        )
    return sources


def _arrow_columns(source: Source, text_key: str) -> Iterator[Any]:
    row = 0
    with pyarrow.memory_map(source.name) as mapped, pyarrow.ipc.open_stream(mapped) as stream:
        for batch in stream:
            start, end = max(source.start - row, 0), min(source.end - row, batch.num_rows)
            if start < end:
                column = batch.column(text_key)
                for place in range(start, end, ROWS_AT_ONCE):
                    yield column.slice(place, min(ROWS_AT_ONCE, end - place))
            row += batch.num_rows
            if row >= source.end:
                return


def _texts(columns: Iterable[Any], source: Source, text_key: str) -> Iterator[tuple[int, str]]:
    row = source.first
    for column in columns:
        longest = pyarrow.compute.max(pyarrow.compute.binary_length(_plain(column))).as_py() or 0
        if longest > LONGEST_TEXT_BYTES:
            raise UserError(
                f"{source.title}, rows {row} to {row + len(column) - 1}: a '{text_key}' has {longest} bytes, more than "
                f"the {LONGEST_TEXT_BYTES} of the longest text that is read"
            )
        try:
            values = column.to_pylist()
        except UnicodeDecodeError:
            values = [_decode(value, source.place(row + place)) for place, value in enumerate(column)]
        for value in values:
            yield row, value or ""
            row += 1


def _plain(column: Any) -> Any:
    """The column as plain text. If every row is null, it may have no type, and views do not tell their length."""
    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pyarrow.types.is_null(column.type) or pyarrow.types.is_string_view(column.type):
        return column.cast(pyarrow.large_string())
    return column


def _decode(value: Any, where: str) -> str:
    try:
        return value.as_py() or ""
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not valid UTF-8 at byte {error.start} ({error.reason})") from None


def _check_column(schema: Any, text_key: str, title: str) -> None:
    places = schema.get_all_field_indices(text_key)
    if len(places) != 1:
        problem = f"no column '{text_key}'" if not places else f"{len(places)} columns '{text_key}'"
        raise UserError(f"{title}: {problem}; it has {', '.join(map(repr, schema.names))}: use --text-key")
    kind = schema.field(places[0]).type
    plain = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    types = pyarrow.types
    is_text = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    if not any(test(plain) for test in is_text):
        raise UserError(f"{title}: column '{text_key}' holds {kind}, not text: use --text-key")


def _ranges(sizes: list[tuple[int, int]]) -> Iterator[tuple[int, int, int, int]]:
    """(start, end, first row, bytes) of runs of (rows, bytes) entries of about `RANGE_BYTES`."""
    start, first, rows, total = 0, 0, 0, 0
    for place, (count, size) in enumerate(sizes):
        rows, total = rows + count, total + size
        if total >= RANGE_BYTES or place == len(sizes) - 1:
            yield start, place + 1, first, total
            start, first, total = place + 1, rows, 0


def _damaged(name: str, error: Exception) -> Exception:
    """The error with the name of the file. An error of the machine (it has a number) stays an OSError."""
    if isinstance(error, OSError) and error.errno:
        return OSError(error.errno, os.strerror(error.errno), name)
    return UserError(f"{name} is damaged, cut off, or of another format: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


PARQUET_KIND = SourceKind("parquet", "a Parquet file", parquet_sources, read_parquet, (".parquet",))
DATASET_KIND = SourceKind("arrow", "a dataset that `datasets` saved", dataset_sources, read_arrow, takes=is_dataset)
