"""GLUE's tasks, from files in the layout of its archive and from what `datasets` saves."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskloom.errors import UserError
from maskloom.tasks.glue import BERT, TASKS, read_task, recipe_of

from .glue_files import QUOTED, spelled, write

SINGLE = ("cola", "sst2")


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_read_from_glues_own_files(name: str, tmp_path: Path) -> None:
    train, devs = read_task(name, write(name, tmp_path))
    task = TASKS[name]
    assert list(devs) == (["matched", "mismatched"] if name == "mnli" else ["dev"])
    names = {spelling: label for label, spelling in task.labels}
    wanted = [spelled(name)[number % len(spelled(name))] for number in range(6)]
    for part, file in ((train, "train.tsv"), *zip(devs.values(), [file for file, _ in task.dev.values()], strict=True)):
        assert [text.rstrip() for text in part.texts] == [f"{QUOTED} {number}" for number in range(6)]
        assert part.pairs == (None if name in SINGLE else [f"stone of {file} {number}" for number in range(6)])
        assert part.labels == ([*map(float, wanted)] if name == "stsb" else [names[label] for label in wanted])
        assert part.place(0) == f"{tmp_path / file}, line {1 if name == 'cola' else 2}"


def test_a_task_is_read_from_what_datasets_saved(tmp_path: Path) -> None:
    import datasets

    task = TASKS["mnli"]
    names = [label for label, _ in task.labels]
    features = datasets.Features(
        {
            "premise": datasets.Value("string"),
            "hypothesis": datasets.Value("string"),
            "label": datasets.ClassLabel(names=names),
            "idx": datasets.Value("int32"),
        }
    )

    def split(what: str) -> datasets.Dataset:
        columns = {"premise": [f"{what} 0", f"{what} 1"], "hypothesis": ["a", "b"], "label": [2, 0], "idx": [0, 1]}
        return datasets.Dataset.from_dict(columns, features=features)

    splits = ("train", "validation_matched", "validation_mismatched")
    datasets.DatasetDict({what: split(what) for what in splits}).save_to_disk(tmp_path / "mnli")
    train, devs = read_task("mnli", tmp_path / "mnli")
    assert train.texts == ["train 0", "train 1"]
    assert train.labels == ["contradiction", "entailment"]
    assert devs["mismatched"].texts == ["validation_mismatched 0", "validation_mismatched 1"]


def test_a_few_broken_rows_are_skipped_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write("qqp", tmp_path, count=2000)
    file = folder / "train.tsv"
    lines = file.read_text().split("\n")
    lines[5] = "half of a question"
    file.write_text("\n".join(lines))
    train, _ = read_task("qqp", folder)
    assert len(train) == 1999
    assert train.numbers[3:5] == [5, 7]
    assert f"{file}: 1 of 2,000 rows are too short and are skipped" in capsys.readouterr().err
    lines[6:10] = ["half"] * 4
    file.write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"train\.tsv: 5 of 2000 rows are too short, the first in line 6"):
        read_task("qqp", folder)


def test_files_of_another_task_are_refused(tmp_path: Path) -> None:
    folder = write("rte", tmp_path)
    with pytest.raises(UserError, match=r"train\.tsv has no column 'question1': it has 'index', 'sentence1'"):
        read_task("qqp", folder)
    with pytest.raises(
        UserError, match=r"train\.tsv, line 2: 'not_entailment' is not a label of this task: it has 0, 1"
    ):
        read_task("wnli", folder)
    with pytest.raises(UserError, match=r"has no dev_matched\.tsv"):
        (folder / "train.tsv").write_bytes((write("mnli", tmp_path / "mnli") / "train.tsv").read_bytes())
        read_task("mnli", folder)
    with pytest.raises(
        UserError, match=r"has no train\.tsv: name the folder of sst2 in GLUE's archive, such as .*SST-2"
    ):
        read_task("sst2", tmp_path / "none")
    (folder / "train.tsv").write_text("")
    with pytest.raises(UserError, match="has no column"):
        read_task("rte", folder)
    (folder / "train.tsv").write_text("index\tsentence1\tsentence2\tlabel\n")
    with pytest.raises(UserError, match="holds no rows"):
        read_task("rte", folder)
    scores = write("stsb", tmp_path / "stsb")
    broken = (scores / "dev.tsv").read_text().replace("5.000", "five")
    (scores / "dev.tsv").write_text(broken)
    with pytest.raises(UserError, match=r"dev\.tsv, line 2: 'five' is not a number"):
        read_task("stsb", scores)


def test_recipes_are_those_of_the_papers() -> None:
    assert all(recipe_of(name, "bert") == BERT for name in TASKS)
    mnli = recipe_of("mnli", "modernbert")
    assert (mnli.lr, mnli.epochs, mnli.weight_decay) == (5e-5, 1, pytest.approx(0.1))
    assert {name for name in TASKS if TASKS[name].from_mnli} == {"rte", "mrpc", "stsb"}
    with pytest.raises(UserError, match="has no settings for wnli"):
        recipe_of("wnli", "modernbert")
