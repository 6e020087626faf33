"""Labelled texts from files: `.csv`, `.tsv` and `.jsonl` (each also `.gz` and `.zst`), `.parquet`, and what `datasets` saved.

Columns that are not named are guessed from their names. What labels are follows from their values:

    lists                                     tags: one for each word (token classification)
    numbers, at least one with a fraction     numbers (regression)
    all else, whole numbers too               classes

CSV and TSV are read as pandas reads them (`data.sources.delimited`). A row that ends early has empty fields.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from maskloom.data.sources.compressed import DAMAGE, SUFFIXES, open_text
from maskloom.data.sources.delimited import rows_of
from maskloom.data.sources.lines import whole_file
from maskloom.errors import UserError
from maskloom.files import parse_json
from maskloom.redaction import brief, one_line, shortened

Kind = Literal["classes", "numbers", "tags"]
Labels = list[str] | list[float] | list[list[str]]

PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("text", "text_pair"),
    ("query", "passage"),
)
"""Usual names of the two texts of a pair, GLUE's among them."""
TEXTS = ("text", "sentence", "tokens", "words", "content", "review", "document", "question", "title")
SURROGATE = re.compile("[\ud800-\udfff]")
LABELS = ("label", "labels", "tags", "ner_tags", "pos_tags", "class", "category", "gold_label", "target", "score")


@dataclass(frozen=True)
class Examples:
    """Labelled texts.

    Attributes:
        texts: one an example; of tags, the words with blanks between them.
        pairs: the second text of each, if there is one.
        labels: one an example: a class, a number, or a list with the tag of each word.
        kind: what the labels are.
        source: where they come from, for messages.
        numbers: the line or row of each there, from 1.
        unit: "line" or "row".
        words: of tags, the words of each text.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: Labels
    kind: Kind
    source: str
    numbers: list[int]
    unit: str = "line"
    words: list[list[str]] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def place(self, number: int) -> str:
        """Where an example stands, for messages."""
        return f"{self.source}, {self.unit} {self.numbers[number]}"

    def take(self, chosen: Sequence[int]) -> Examples:
        """The examples of these numbers, from 0, in this order."""
        labels: Any = [self.labels[number] for number in chosen]
        return Examples(
            [self.texts[number] for number in chosen],
            None if self.pairs is None else [self.pairs[number] for number in chosen],
            labels,
            self.kind,
            self.source,
            [self.numbers[number] for number in chosen],
            self.unit,
            None if self.words is None else [self.words[number] for number in chosen],
        )


def read_examples(
    path: str | Path,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
    split: str | None = None,
    *,
    kind: Kind | None = None,
) -> Examples:
    """The labelled texts of a file, or of a folder that `datasets` saved. An empty or missing text is a text without words.

    Args:
        text_column, pair_column, label_column: names of columns. None: guessed. A pair is guessed only if the text is, too.
        split: of a folder that holds several. None: its only one.
        kind: what labels are. None: as their values tell.

    Raises:
        UserError: the file cannot be read, a column is missing, or a row has no label, or one of another kind.
    """
    table = _read_table(Path(path), split)
    if not table.numbers:
        raise UserError(f"{table.source} holds no rows: name a file with a text and a label in each row")
    text, pair, label = _choose(table, text_column, pair_column, label_column)
    values = table.columns[label]
    missing = next((place for place, value in enumerate(values) if _is_empty(value)), None)
    if missing is not None:
        raise UserError(
            f"{table.place(missing)}: column '{label}' is empty: give each row a label, or leave the row out"
        )
    kind = kind or _kind_of(values)
    labels: Any = _LABELS_OF[kind](table, label)
    words = None
    if kind == "tags":
        words = _words(table, text, label)
        texts = [" ".join(row) for row in words]
    else:
        texts = _texts(table, text)
    pairs = None if pair is None else _texts(table, pair)
    return Examples(texts, pairs, labels, kind, table.source, table.numbers, table.unit, words)


def splits_of(path: str | Path) -> list[str]:
    """Names of the splits of a folder that `datasets` saved, in their order; none for anything else."""
    file = Path(path) / "dataset_dict.json"
    if not file.is_file():
        return []
    try:
        return [str(name) for name in parse_json(file.read_bytes())["splits"]]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file} is damaged: save the dataset again with `save_to_disk`") from None


@dataclass(frozen=True)
class _Table:
    columns: dict[str, list[Any]]
    source: str
    numbers: list[int]
    unit: str

    def place(self, row: int) -> str:
        return f"{self.source}, {self.unit} {self.numbers[row]}"


def _read_table(path: Path, split: str | None) -> _Table:
    name = path.name.lower()
    plain = next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)
    kind = Path(plain).suffix
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder: name a file with labelled texts")
    if path.is_dir():
        return _saved(path, split)
    if split is not None:
        raise UserError(f"{path} is a file, which has no splits: name the file of the split '{split}' instead")
    if kind in (".csv", ".tsv"):
        return _delimited(path, kind[1:])
    if kind == ".jsonl":
        return _json_lines(path)
    if kind == ".parquet":
        return _parquet(path)
    raise UserError(
        f"{path}: its name ends with '{path.suffix}', which is not read: labelled texts come from .csv, .tsv, .jsonl (also "
        ".gz and .zst), .parquet, or a folder that `datasets` saved"
    )


def _delimited(path: Path, kind: str) -> _Table:
    numbers: list[int] = []
    with contextlib.closing(rows_of(whole_file(kind, path, 0, "line"))) as rows:
        _, names = next(rows, (0, []))
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"{path}: two columns are called '{twice}': give each a name of its own")
        columns: list[list[Any]] = [[] for _ in names]
        for line, row in rows:
            if len(row) > len(names):
                raise UserError(
                    f"{path}, line {line}: {len(row)} fields, but there are {len(names)} columns: put text with separators "
                    'into quotes ("), and write a quote in it as ""'
                )
            numbers.append(line)
            for column, value in zip(columns, [*row, *[""] * (len(names) - len(row))], strict=True):
                column.append(value)
    return _Table(dict(zip(names, columns, strict=True)), str(path), numbers, "line")


def _json_lines(path: Path) -> _Table:
    rows, numbers = [], []
    try:
        with open_text(str(path)) as stream:
            for number, line in enumerate(stream, start=1):
                if not line.strip():
                    continue
                try:
                    row = parse_json(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except ValueError as error:
                    raise UserError(f"{path}, line {number}: not JSON: {shortened(one_line(str(error)))}") from None
                if not isinstance(row, dict):
                    raise UserError(f'{path}, line {number}: not a JSON object, such as {{"text": ..., "label": ...}}')
                rows.append(row)
                numbers.append(number)
    except DAMAGE as error:
        raise UserError(f"{path} is damaged or cut off: {error}") from None
    names = dict.fromkeys(name for row in rows for name in row)
    return _Table({name: [row.get(name) for row in rows] for name in names}, str(path), numbers, "line")


def _parquet(path: Path) -> _Table:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
            columns = {name: table.column(name).to_pylist() for name in table.column_names}
            features = _features_in(table.schema.metadata)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged, or not a Parquet file: {shortened(one_line(str(error)))}") from None
    _name_classes(columns, features)
    return _Table(columns, str(path), list(range(1, table.num_rows + 1)), "row")


def _features_in(metadata: Mapping[bytes, bytes] | None) -> Mapping[str, Any]:
    """What `datasets` wrote of the columns into a Parquet file; nothing if another program wrote it."""
    written = (metadata or {}).get(b"huggingface")
    if written is None:
        return {}
    import datasets

    try:
        found: Mapping[str, Any] = datasets.Features.from_dict(parse_json(written)["info"]["features"])
    except Exception:  # written by another version: classes stay numbers then
        return {}
    return found


def _name_classes(columns: dict[str, list[Any]], features: Mapping[str, Any]) -> None:
    """Turn numbers of classes into their names, in the columns of which `datasets` knows them."""
    for name in columns.keys() & features.keys():
        if namer := _namer(features[name]):
            columns[name] = [None if value is None else namer(value) for value in columns[name]]


def _saved(folder: Path, split: str | None) -> _Table:
    """The rows of a folder that `save_to_disk` wrote. Numbers of classes become their names."""
    import datasets

    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # the library raises many kinds, a bare FileNotFoundError for a folder of another kind
        raise UserError(f"{folder} is not a folder that `datasets` saved: {shortened(one_line(str(error)))}") from None
    source = str(folder)
    if isinstance(found, datasets.DatasetDict):
        names = list(found)
        if split is None and len(names) != 1:
            raise UserError(f"{folder} has the splits {', '.join(names)}: name one of them")
        split = split or names[0]
        if split not in found:
            raise UserError(f"{folder} has no split '{split}', it has {', '.join(names)}")
        found, source = found[split], f"{folder} ({split})"
    elif split is not None:
        raise UserError(f"{folder} holds one split without a name: leave out '{split}'")
    table = found.with_format("arrow")[:]  # as it is stored: pictures are not opened, and no format of its own applies
    columns = {name: table.column(name).to_pylist() for name in found.column_names}
    _name_classes(columns, found.features)
    return _Table(columns, source, list(range(1, found.num_rows + 1)), "row")


def _namer(feature: Any) -> Callable[[Any], Any] | None:
    """What turns a value of `ClassLabel`, or of a list of such, into its names. -1 and other numbers without one mean none."""

    def name(names: Sequence[str], value: Any) -> str | None:
        return names[value] if value is not None and 0 <= value < len(names) else None

    names: list[str] | None = getattr(feature, "names", None)
    if names is not None:
        return lambda value: name(names, value)
    tags: list[str] | None = getattr(getattr(feature, "feature", None), "names", None)
    return (lambda row: [name(tags, value) for value in row]) if tags is not None else None


def _choose(table: _Table, text: str | None, pair: str | None, label: str | None) -> tuple[str, str | None, str]:
    """Names of the columns: those that were given, and guesses for the rest."""
    names = {name.lower(): name for name in table.columns}
    for given in (text, pair, label):
        if given is not None and given not in table.columns:
            raise UserError(f"{table.source} has no column '{given}': it has {_listed(table)}")
    if label is None:
        label = next((names[name] for name in LABELS if name in names and names[name] not in (text, pair)), None)
    if text is None:
        both = next(((names[a], names[b]) for a, b in PAIRS if a in names and b in names), None)
        if both and pair in (None, both[1]):
            text, pair = both
        else:
            text = next((names[name] for name in TEXTS if name in names and names[name] not in (pair, label)), None)
    free = [name for name in table.columns if name not in (text, pair, label)]
    if text is None and label is not None and len(free) == 1:
        (text,) = free
    elif label is None and text is not None and len(free) == 1:
        (label,) = free
    if text is None or label is None:
        what = "texts" if text is None else "labels"
        raise UserError(f"{table.source}: which column holds the {what}? It has {_listed(table)}: name the column")
    return text, pair, label


def _listed(table: _Table) -> str:
    return ", ".join(map(repr, table.columns)) or "none"


def _is_empty(label: Any) -> bool:
    """Whether a row has no label. NaN is what some libraries write for none."""
    return label is None or label == "" or (isinstance(label, float) and math.isnan(label))


def _kind_of(values: Sequence[Any]) -> Kind:
    if all(isinstance(value, list | tuple) for value in values):
        return "tags"
    numbers = [_number(value) for value in values]
    known = [number for number in numbers if number is not None]
    if len(known) == len(numbers) and any(number != int(number) for number in known):
        return "numbers"
    return "classes"


def _number(value: Any) -> float | None:
    """A finite number, or a text that spells one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _classes(table: _Table, label: str) -> list[str]:
    found = []
    for place, value in enumerate(table.columns[label]):
        if not isinstance(value, str | int | float | bool):
            raise UserError(f"{table.place(place)}: column '{label}' holds {brief(value)}, which is not a class")
        whole = isinstance(value, float) and value.is_integer()
        found.append(str(int(value) if whole else value))
    return found


def _numbers(table: _Table, label: str) -> list[float]:
    found = []
    for place, value in enumerate(table.columns[label]):
        number = _number(value)
        if number is None:
            raise UserError(f"{table.place(place)}: column '{label}' holds {brief(value)}, which is not a number")
        found.append(number)
    return found


def _tags(table: _Table, label: str) -> list[list[str]]:
    found = []
    for place, value in enumerate(table.columns[label]):
        if not isinstance(value, list | tuple) or not all(isinstance(tag, str | int) for tag in value):
            raise UserError(f"{table.place(place)}: column '{label}' holds {brief(value)}, not a list of tags")
        found.append([str(tag) for tag in value])
    return found


_LABELS_OF: Mapping[Kind, Callable[[_Table, str], Labels]] = {
    "classes": _classes,
    "numbers": _numbers,
    "tags": _tags,
}


def _texts(table: _Table, column: str) -> list[str]:
    found = []
    for place, value in enumerate(table.columns[column]):
        if value is not None and not isinstance(value, str):
            raise UserError(f"{table.place(place)}: column '{column}' holds {brief(value)}, which is not a text")
        found.append(value or "")
    _check_encodable(table, column, found)
    return found


def _check_encodable(table: _Table, column: str, texts: Sequence[str]) -> None:
    """Raises UserError for a text with half a character of UTF-16, which JSON can hold and no tokenizer reads."""
    for place, text in enumerate(texts):
        if found := SURROGATE.search(text):
            raise UserError(
                f"{table.place(place)}: column '{column}' holds the lone surrogate \\u{ord(found[0]):04x}, which is not text: "
                "replace it"
            )


def _words(table: _Table, column: str, label: str) -> list[list[str]]:
    found = []
    for place, value in enumerate(table.columns[column]):
        if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
            raise UserError(f"{table.place(place)}: column '{column}' holds {brief(value)}, not a list of words")
        tags = table.columns[label][place]
        if len(value) != len(tags):
            raise UserError(
                f"{table.place(place)}: {len(value)} words in '{column}' and {len(tags)} tags in '{label}': each word "
                "needs one tag"
            )
        found.append(list(value))
    _check_encodable(table, column, [" ".join(words) for words in found])
    return found
