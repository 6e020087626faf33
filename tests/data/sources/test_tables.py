"""Parquet files and Hugging Face datasets: the same documents as the same text in lines, in ranges of any size."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.data.sources import tables
from maskloom.data.sources.inputs import find_sources, read_source
from maskloom.errors import UserError

ROWS = [f"row {number} é " + "word " * (number % 7) for number in range(50)]


def read(given_input: object, text_key: str = "text") -> list[tuple[int, int, str]]:
    """(number of the source, ordinal, text) of every document."""
    sources = find_sources([str(given_input)], text_key)
    return [(source.number, *document) for source in sources for document in read_source(source, text_key, "file")]


def texts(given_input: object, text_key: str = "text") -> list[str]:
    return [text for _, _, text in read(given_input, text_key)]


def write_parquet(path: Path, rows: list[Any], kind: Any = None, **options: Any) -> Path:
    table = pyarrow.table({"id": list(range(len(rows))), "text": pyarrow.array(rows, kind or pyarrow.string())})
    pyarrow.parquet.write_table(table, path, **options)
    return path


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Prepared datasets of a test stay its own, and there are no bars."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.none() | st.text(st.characters(codec="utf-8"), max_size=20), max_size=30),
    st.integers(1, 8),
    st.integers(1, 200),
)
def test_row_groups_in_ranges_of_any_size_read_every_row_once(
    tmp_path_factory: pytest.TempPathFactory, rows: list[str | None], group_rows: int, range_bytes: int
) -> None:
    path = write_parquet(tmp_path_factory.mktemp("parquet") / "a.parquet", rows, row_group_size=group_rows)
    with patch.object(tables, "RANGE_BYTES", range_bytes):
        assert read(path) == [(0, row, text or "") for row, text in enumerate(rows)]


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.none() | st.text(st.characters(codec="utf-8"), max_size=20), min_size=1, max_size=30),
    st.integers(1, 200),
)
def test_arrow_files_in_ranges_of_any_size_read_every_row_once(
    tmp_path_factory: pytest.TempPathFactory, rows: list[str | None], range_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("saved")
    datasets.Dataset.from_dict({"text": rows}).save_to_disk(folder / "a", num_shards=min(3, len(rows)))
    with patch.object(tables, "RANGE_BYTES", range_bytes), patch.object(tables, "ROWS_AT_ONCE", 4):
        assert read(folder / "a") == [(0, row, text or "") for row, text in enumerate(rows)]


def test_a_big_file_is_several_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "RANGE_BYTES", 200)
    write_parquet(tmp_path / "a.parquet", ROWS, row_group_size=5)
    assert len(find_sources([str(tmp_path / "a.parquet")])) > 3
    with patch.object(datasets.config, "DEFAULT_MAX_BATCH_SIZE", 5):
        datasets.Dataset.from_dict({"text": ROWS}).save_to_disk(tmp_path / "saved", num_shards=5)
    sources = find_sources([str(tmp_path / "saved")])
    assert len(sources) >= 5
    assert len({source.number for source in sources}) == 1


def test_every_kind_of_input_gives_the_same_documents(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ROWS))
    write_parquet(tmp_path / "a.parquet", ROWS)
    dataset = datasets.Dataset.from_dict({"text": ROWS})
    dataset.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict(train=dataset).save_to_disk(tmp_path / "one_split")
    (tmp_path / "hub").mkdir()
    dataset.to_parquet(tmp_path / "hub" / "train.parquet")
    (tmp_path / "lines").mkdir()
    dataset.to_json(tmp_path / "lines" / "test.jsonl")
    inputs = ["a.jsonl", "a.parquet", "saved", "one_split"]
    for given_input in [*(tmp_path / name for name in inputs), f"hf:{tmp_path}/hub:train", f"hf:{tmp_path}/lines:test"]:
        assert texts(given_input) == ROWS, given_input


def test_a_shuffled_or_chosen_dataset_is_read_as_it_was_saved(tmp_path: Path) -> None:
    dataset = datasets.Dataset.from_dict({"text": ROWS}).shuffle(seed=1).select(range(20))
    dataset.save_to_disk(tmp_path / "saved")
    assert texts(tmp_path / "saved") == dataset["text"][:]


@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.string(),
        pyarrow.large_string(),
        pyarrow.string_view(),
        pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    ],
)
def test_all_types_of_text(tmp_path: Path, kind: Any) -> None:
    assert texts(write_parquet(tmp_path / "a.parquet", ["b", None, "a", "b"], kind)) == ["b", "", "a", "b"]


def test_columns_that_are_missing_or_not_text_are_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", ROWS)
    datasets.Dataset.from_dict({"text": ROWS, "id": list(range(50))}).save_to_disk(tmp_path / "saved")
    for given_input in (path, tmp_path / "saved"):
        with pytest.raises(UserError, match=rf"{given_input}: no column 'body'; it has .*'text'.*: use --text-key"):
            texts(given_input, "body")
        with pytest.raises(UserError, match=rf"{given_input}: column 'id' holds int64, not text"):
            texts(given_input, "id")
    pyarrow.parquet.write_table(pyarrow.table({"text": [["a"]], "in": [{"text": "a"}]}), path)
    with pytest.raises(UserError, match="column 'text' holds list"):
        texts(path)
    with pytest.raises(UserError, match="column 'in' holds struct"):
        texts(path, "in")


def test_nested_columns_do_not_mix_with_the_text(tmp_path: Path) -> None:
    table = pyarrow.table({"meta": [{"text": "no", "id": 1}], "text": ["yes"], "more": [["a", "b"]]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet") == ["yes"]


def test_a_name_with_a_dot_is_a_column(tmp_path: Path) -> None:
    inner = pyarrow.array([{"b": "inside"}] * 2)
    for place, columns in enumerate(
        ({"a.b": ["x", "y"]}, {"a.b": ["x", "y"], "a": inner}, {"a": inner, "a.b": ["x", "y"]})
    ):
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / f"{place}.parquet")
        assert texts(tmp_path / f"{place}.parquet", "a.b") == ["x", "y"]


def test_a_saved_dataset_without_rows_is_named(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": []}).save_to_disk(tmp_path / "empty")
    with pytest.raises(UserError, match="empty is a dataset without rows"):
        read(tmp_path / "empty")


def test_a_damaged_table_is_refused_by_name(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", ROWS, compression="none", write_page_checksum=True)
    data = path.read_bytes()
    for end in (0, 3, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(UserError, match=r"a\.parquet is damaged, cut off, or of another format"):
            texts(path)
    damaged = bytearray(data)
    damaged[data.index(ROWS[3].encode()) + 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"a\.parquet is damaged.*CRC"):
        texts(path)


def test_bytes_that_are_not_utf8_name_the_row(tmp_path: Path) -> None:
    bad = pyarrow.array([b"good", b"bad \xff"]).view(pyarrow.binary())
    column = pyarrow.StringArray.from_buffers(2, bad.buffers()[1], bad.buffers()[2])
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet, row 1: not valid UTF-8 at byte 4"):
        texts(tmp_path / "a.parquet")


def test_an_absurdly_long_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "LONGEST_TEXT_BYTES", 100)
    with pytest.raises(UserError, match="rows 0 to 1: a 'text' has 101 bytes, more than the 100"):
        texts(write_parquet(tmp_path / "a.parquet", ["short", "x" * 101]))


def test_splits_are_named(tmp_path: Path) -> None:
    dataset = datasets.Dataset.from_dict({"text": ROWS})
    datasets.DatasetDict(train=dataset, test=dataset.select(range(5))).save_to_disk(tmp_path / "both")
    with pytest.raises(
        UserError, match=rf"holds the splits train, test: name the folder of one, such as {tmp_path}/both/train"
    ):
        texts(tmp_path / "both")
    assert texts(tmp_path / "both" / "test") == ROWS[:5]


def test_datasets_that_cannot_be_had_are_named(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    datasets.Dataset.from_dict({"text": ROWS}).to_parquet(tmp_path / "hub" / "train.parquet")
    folder = tmp_path / "hub"
    for given_input, said in [
        ("hf:", "is not hf:NAME:SPLIT"),
        (f"hf:{folder}", "the folder needs the name of a split too"),
        ("hf:a/b", "is not hf:NAME:SPLIT"),
        (f"hf:{folder}:a:b:c", "is not hf:NAME:SPLIT"),
        (f"hf:{tmp_path}/none:train", "none"),
        (f"hf:{folder}:dev", 'Unknown split "dev"'),
        (f"hf:{folder}:other:train", "'other'"),
        (f"hf:{folder}:train[:10]", "a part of a split is not read"),
    ]:
        with pytest.raises(UserError, match=said.replace("[", r"\[")):
            texts(given_input)
    (folder / "dataset_dict.json").write_text("{")
    with pytest.raises(UserError, match="hub cannot be opened as a dataset"):
        texts(folder)


@pytest.mark.parametrize("folder", ["a:b", "a:train", "a b", "50%", "a%20b", "{a}", "é", "train:train"])
def test_a_folder_of_any_name_is_read(tmp_path: Path, folder: str) -> None:
    place = tmp_path / folder
    place.mkdir()
    datasets.Dataset.from_dict({"text": ROWS}).to_parquet(place / "train.parquet")
    assert texts(f"hf:{place}:train") == ROWS
    assert texts(f"hf:{place}:default:train") == ROWS
    with pytest.raises(UserError, match=rf"needs the name of a split too, such as hf:{re.escape(str(place))}:train$"):
        texts(f"hf:{place}")
    with pytest.raises(UserError, match="a part of a split is not read"):
        texts(f"hf:{place}:train[:10]")


@pytest.mark.parametrize("folder", ["[D]", "a[0-9]", "x*", "q?", "a:[D]", "train[:10]"])
def test_a_folder_that_datasets_would_take_for_a_pattern_says_so(tmp_path: Path, folder: str) -> None:
    """It would find no file there, or those of other folders as well."""
    place = tmp_path / folder
    place.mkdir()
    datasets.Dataset.from_dict({"text": ROWS}).to_parquet(place / "train.parquet")
    for given_input in (f"hf:{place}:train", f"hf:{place}:default:train"):
        with pytest.raises(UserError, match=r"for a pattern.*Rename the folder, or name it without 'hf:'"):
            texts(given_input)
    assert texts(place) == ROWS  # as the message says


def test_a_saved_folder_is_named_without_the_hub(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ROWS}).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match=r"save_to_disk.*name it without 'hf:', .*saved$"):
        texts(f"hf:{tmp_path}/saved:train")


def test_a_saved_dataset_among_other_files_is_never_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    datasets.Dataset.from_dict({"text": ROWS}).save_to_disk(tmp_path / "deep" / "saved")
    with pytest.raises(UserError, match=r"deep/saved is a dataset .* name it as an INPUT of its own"):
        find_sources([str(tmp_path)])


@pytest.mark.parametrize("kind", ["script", "pickle"])
def test_no_code_of_a_dataset_is_run(kind: str, tmp_path: Path) -> None:
    trap, folder = tmp_path / "ran", tmp_path / "mine"
    folder.mkdir()
    if kind == "script":
        (folder / "mine.py").write_text(f"open({str(trap)!r}, 'w')\n")
    else:
        (folder / "train.pkl").write_bytes(f"cos\nsystem\n(S'touch {trap}'\ntR.".encode())
    with pytest.raises(UserError):
        texts(f"hf:{folder}:train")
    assert not trap.exists()
