"""Labelled texts: the same from every kind of file, columns guessed, and faults named with file, row and column."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import datasets
import pandas
import pyarrow
import pyarrow.parquet
import pytest

from maskloom.errors import UserError
from maskloom.tasks.labelled import Examples, read_examples, splits_of

ROWS = [("a river, wide", "water"), ('she said "stone"', "rock"), ("two\nlines", "water")]


def write(folder: Path, name: str) -> Path:
    """The rows in a file of this kind."""
    frame, path = pandas.DataFrame(ROWS, columns=["text", "label"]), folder / name
    if name.endswith((".csv", ".csv.gz")):
        frame.to_csv(path, index=False)
    elif name.endswith(".tsv"):
        frame.to_csv(path, index=False, sep="\t")
    elif name.endswith(".jsonl"):
        frame.to_json(path, orient="records", lines=True)
    elif name.endswith(".jsonl.gz"):
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in frame.to_dict("records")).encode()))
    elif name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pandas(frame), path)
    else:
        classes = datasets.ClassLabel(names=["rock", "water"])
        columns = {"text": [text for text, _ in ROWS], "label": [classes.str2int(label) for _, label in ROWS]}
        features = datasets.Features({"text": datasets.Value("string"), "label": classes})
        datasets.Dataset.from_dict(columns, features=features).save_to_disk(path)
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv", "a.jsonl", "a.jsonl.gz", "a.parquet", "saved"])
def test_every_kind_of_file_holds_the_same(name: str, tmp_path: Path) -> None:
    found = read_examples(write(tmp_path, name))
    assert list(zip(found.texts, found.labels, strict=True)) == ROWS
    assert (found.kind, found.pairs, found.words, len(found)) == ("classes", None, None, 3)
    assert splits_of(tmp_path / name) == []


def test_the_line_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"two\nlines",a\n\nnext,b\n')
    found = read_examples(path)
    assert [found.place(number) for number in range(2)] == [f"{path}, line 2", f"{path}, line 5"]
    assert found.take([1]).place(0) == f"{path}, line 5"


def test_datasets_names_its_classes_in_parquet_too(tmp_path: Path) -> None:
    datasets.load_from_disk(write(tmp_path, "saved")).to_parquet(tmp_path / "a.parquet")
    assert read_examples(tmp_path / "a.parquet").labels == ["water", "rock", "water"]


def test_a_number_without_a_class_is_no_label(tmp_path: Path) -> None:
    """-1 is not the last class, and marks of ignored tags are not tags."""
    tags = datasets.Features(
        {
            "tokens": datasets.Sequence(datasets.Value("string")),
            "tags": datasets.Sequence(datasets.ClassLabel(names=["O", "P"])),
        }
    )
    rows = {"tokens": [["a", "b"]], "tags": [[0, -1]]}
    datasets.Dataset.from_dict(rows, features=tags).save_to_disk(tmp_path / "tags")
    with pytest.raises(UserError, match=r"row 1: column 'tags' holds \['O', None\], not a list of tags"):
        read_examples(tmp_path / "tags")
    whole = datasets.load_from_disk(write(tmp_path, "saved")).data.table
    table = whole.set_column(1, "label", pyarrow.array([0, 1, 7]))
    pyarrow.parquet.write_table(table.replace_schema_metadata(whole.schema.metadata), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="row 3: column 'label' is empty"):
        read_examples(tmp_path / "a.parquet")


def test_a_dataset_is_read_as_it_is_stored(tmp_path: Path) -> None:
    """The format that it has for others, such as tensors, does not apply. Its order does."""
    whole = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 0]})
    whole.select([2, 1]).with_format("torch").save_to_disk(tmp_path / "saved")
    found = read_examples(tmp_path / "saved")
    assert (found.texts, found.labels) == (["c", "b"], ["0", "1"])


def test_a_dataset_with_splits(tmp_path: Path) -> None:
    parts = {name: datasets.Dataset.from_dict({"text": [name], "label": [1]}) for name in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "all")
    assert splits_of(tmp_path / "all") == ["train", "test"]
    assert read_examples(tmp_path / "all", split="test").texts == ["test"]
    with pytest.raises(UserError, match="has the splits train, test: name one of them"):
        read_examples(tmp_path / "all")
    with pytest.raises(UserError, match="has no split 'dev', it has train, test"):
        read_examples(tmp_path / "all", split="dev")


class TestColumns:
    @pytest.mark.parametrize(
        ("names", "expected"),
        [
            (["sentence", "idx", "label"], ("0", None, "2")),
            (["sentence1", "sentence2", "score"], ("0", "1", "2")),
            (["question", "sentence", "label"], ("0", "1", "2")),
            (["Premise", "Hypothesis", "gold_label"], ("0", "1", "2")),
            (["label", "body"], ("1", None, "0")),
            (["text", "mood"], ("0", None, "1")),
        ],
    )
    def test_guesses(self, names: list[str], expected: tuple[str | None, ...], tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text(",".join(names) + "\n" + ",".join(map(str, range(len(names)))) + "\n")
        found = read_examples(path)
        assert (found.texts[0], found.pairs and found.pairs[0], found.labels[0]) == (
            expected[0],
            expected[1],
            expected[2],
        )

    def test_names_that_are_given_decide(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text("text,label,other,more\n0,1,2,3\n")
        found = read_examples(path, "more", "text", "other")
        assert (found.texts, found.pairs, found.labels) == (["3"], ["0"], ["2"])

    def test_what_cannot_be_guessed_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text("x,y\n0,1\n")
        with pytest.raises(UserError, match=r"which column holds the texts.* 'x', 'y': name the column"):
            read_examples(path)
        with pytest.raises(UserError, match="has no column 'z': it has 'x', 'y'"):
            read_examples(path, text_column="z")


class TestLabels:
    @pytest.mark.parametrize(
        ("values", "kind", "labels"),
        [
            ([1, 0], "classes", ["1", "0"]),
            ([True, False], "classes", ["True", "False"]),
            ([1.0, 2.0], "classes", ["1", "2"]),
            ([1.5, 2], "numbers", [1.5, 2.0]),
            (["1.5", "2"], "numbers", [1.5, 2.0]),
            (["1.5", "x"], "classes", ["1.5", "x"]),
        ],
    )
    def test_what_they_are(self, values: list[object], kind: str, labels: list[object], tmp_path: Path) -> None:
        found = read_examples(self.rows(tmp_path, values))
        assert (found.kind, found.labels) == (kind, labels)

    def test_the_caller_may_say_what_they_are(self, tmp_path: Path) -> None:
        path = self.rows(tmp_path, [1, 2])
        assert read_examples(path, kind="numbers").labels == [1.0, 2.0]
        with pytest.raises(UserError, match=r"line 1: column 'label' holds 1, not a list of tags"):
            read_examples(path, kind="tags")

    def test_tags(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        path.write_text('{"tokens": ["a", "b"], "ner_tags": ["O", "P"]}\n')
        found = read_examples(path)
        assert (found.kind, found.texts, found.words, found.labels) == ("tags", ["a b"], [["a", "b"]], [["O", "P"]])

    @staticmethod
    def rows(folder: Path, values: list[object]) -> Path:
        path = folder / "a.jsonl"
        path.write_text("".join(json.dumps({"text": "x", "label": value}) + "\n" for value in values))
        return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "holds no rows"),
        ("a.csv", "text,label\na,\n", "line 2: column 'label' is empty"),
        ("a.csv", "text,label\na,b,c\n", "line 2: 3 fields, but there are 2 columns"),
        ("a.csv", "text,text\na,b\n", "two columns are called 'text'"),
        ("a.csv", 'text,label\n"a,b\n', "line 2: a quote .* never closed"),
        ("a.jsonl", '{"text": "a", "label": 1}\n[1]\n', "line 2: not a JSON object"),
        ("a.jsonl", "{", "line 1: not JSON"),
        ("a.jsonl", '{"text": 3, "label": 1}\n', "line 1: column 'text' holds 3, which is not a text"),
        ("a.jsonl", '{"text": "a", "label": {}}\n', "line 1: column 'label' holds {}, which is not a class"),
        ("a.jsonl", '{"text": "a", "label": null}\n', "line 1: column 'label' is empty"),
        ("a.jsonl", '{"tokens": ["a"], "tags": []}\n', "line 1: 1 words in 'tokens' and 0 tags in 'tags'"),
        ("a.jsonl", '{"text": "a", "label": NaN}\n', "line 1: column 'label' is empty"),
        ("a.jsonl", '{"text": "a \\ud800", "label": 1}\n', r"line 1: column 'text' holds the lone surrogate .ud800"),
        ("a.jsonl", '{"tokens": ["\\udc00"], "tags": ["O"]}\n', r"column 'tokens' holds the lone surrogate .udc00"),
        ("a.jsonl.gz", "x", "is damaged"),
        ("a.parquet", "x", "is damaged, or not a Parquet file"),
        ("a.txt", "x", "its name ends with '.txt', which is not read"),
    ],
)
def test_faults_are_named(name: str, content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=message) as refused:
        read_examples(path)
    assert str(path) in str(refused.value)


def test_other_faults_of_a_path(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        read_examples(tmp_path / "absent.csv")
    with pytest.raises(UserError, match="is not a folder that `datasets` saved"):
        read_examples(tmp_path)
    (tmp_path / "a.csv").write_text("text,label\na,b\n")
    with pytest.raises(UserError, match="is a file, which has no splits"):
        read_examples(tmp_path / "a.csv", split="train")


def test_take_keeps_all_columns() -> None:
    examples = Examples(
        ["a b", "c"], ["x", "y"], [["O", "P"], ["Q"]], "tags", "file", [4, 7], "row", [["a", "b"], ["c"]]
    )
    assert examples.take([1]) == Examples(["c"], ["y"], [["Q"]], "tags", "file", [7], "row", [["c"]])
