"""GLUE's tasks: their files, labels, figures, and the settings that papers fine-tuned with.

A task's folder is what GLUE's own archive holds (`train.tsv`, `dev.tsv`), or what `datasets` saved with `save_to_disk`. The
labels of the test sets are not public, so figures are those of the dev set, as papers give them.

The files have quirks. Quotes are characters like any other. CoLA's have no line of names. MNLI has two dev sets. MRPC's begin
with a byte order mark. QQP's training file has three broken rows. Rows that are too short are skipped and counted.

Source: Wang et al. 2018, "GLUE: A Multi-Task Benchmark and Analysis Platform", arXiv 1804.07461.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from maskloom.errors import UserError
from maskloom.files import read_plain
from maskloom.progress import warn
from maskloom.redaction import brief
from maskloom.tasks.labelled import Examples, Kind, read_examples

MOST_BROKEN = 0.001
"""The largest share of rows that may be too short. QQP has 3 in 363,849."""


@dataclass(frozen=True)
class GlueTask:
    """One task.

    Attributes:
        columns: of the TSV files: first text, second text or None, label.
        names: of the TSV files whose first line has none.
        saved: the texts' columns of a folder that `datasets` saved.
        labels: classes in the order of their ids in `datasets`: the name there, and the spelling in the TSV files.
        metrics: figures to give, the main one first; names are those of `tasks.metrics`.
        dev: dev sets: name for people -> file, split.
        from_mnli: papers start this task from a model that was fine-tuned on MNLI.
    """

    columns: tuple[str, str | None, str]
    saved: tuple[str, str | None]
    labels: tuple[tuple[str, str], ...]
    metrics: tuple[str, ...]
    names: tuple[str, ...] = ()
    dev: dict[str, tuple[str, str]] = field(default_factory=lambda: {"dev": ("dev.tsv", "validation")})
    from_mnli: bool = False

    @property
    def kind(self) -> Kind:
        return "classes" if self.labels else "numbers"


ENTAILMENT = (("entailment", "entailment"), ("not_entailment", "not_entailment"))

TASKS: dict[str, GlueTask] = {
    "cola": GlueTask(
        columns=("sentence", None, "label"),
        names=("source", "label", "note", "sentence"),
        saved=("sentence", None),
        labels=(("unacceptable", "0"), ("acceptable", "1")),
        metrics=("matthews", "accuracy"),
    ),
    "sst2": GlueTask(
        columns=("sentence", None, "label"),
        saved=("sentence", None),
        labels=(("negative", "0"), ("positive", "1")),
        metrics=("accuracy",),
    ),
    "mrpc": GlueTask(
        columns=("#1 String", "#2 String", "Quality"),
        saved=("sentence1", "sentence2"),
        labels=(("not_equivalent", "0"), ("equivalent", "1")),
        metrics=("accuracy", "f1"),
        from_mnli=True,
    ),
    "stsb": GlueTask(
        columns=("sentence1", "sentence2", "score"),
        saved=("sentence1", "sentence2"),
        labels=(),
        metrics=("pearson", "spearman"),
        from_mnli=True,
    ),
    "qqp": GlueTask(
        columns=("question1", "question2", "is_duplicate"),
        saved=("question1", "question2"),
        labels=(("not_duplicate", "0"), ("duplicate", "1")),
        metrics=("accuracy", "f1"),
    ),
    "mnli": GlueTask(
        columns=("sentence1", "sentence2", "gold_label"),
        saved=("premise", "hypothesis"),
        labels=(("entailment", "entailment"), ("neutral", "neutral"), ("contradiction", "contradiction")),
        metrics=("accuracy",),
        dev={
            "matched": ("dev_matched.tsv", "validation_matched"),
            "mismatched": ("dev_mismatched.tsv", "validation_mismatched"),
        },
    ),
    "qnli": GlueTask(
        columns=("question", "sentence", "label"),
        saved=("question", "sentence"),
        labels=ENTAILMENT,
        metrics=("accuracy",),
    ),
    "rte": GlueTask(
        columns=("sentence1", "sentence2", "label"),
        saved=("sentence1", "sentence2"),
        labels=ENTAILMENT,
        metrics=("accuracy",),
        from_mnli=True,
    ),
    "wnli": GlueTask(
        columns=("sentence1", "sentence2", "label"),
        saved=("sentence1", "sentence2"),
        labels=(("not_entailment", "0"), ("entailment", "1")),
        metrics=("accuracy",),
    ),
}


@dataclass(frozen=True)
class Recipe:
    """Published settings of a task; `weight_decay` is AdamW's of torch."""

    lr: float
    epochs: int
    weight_decay: float
    warmup_share: float
    batch_rows: int
    max_tokens: int


BERT = Recipe(lr=3e-5, epochs=3, weight_decay=0.01, warmup_share=0.1, batch_rows=32, max_tokens=128)
"""Devlin et al. 2018, arXiv 1810.04805, section 4.1: 3 epochs of batches of 32, and the best on the dev set of the rates 5e-5,
4e-5, 3e-5 and 2e-5. 3e-5 is one of them. The rest is the default of google-research/bert's `run_classifier.py` and
`optimization.py`, with 128 tokens as in its README."""

_MODERNBERT = {
    "cola": (8e-5, 1e-6, 5),
    "mnli": (5e-5, 5e-6, 1),
    "mrpc": (5e-5, 5e-6, 10),
    "qnli": (8e-5, 5e-6, 2),
    "qqp": (5e-5, 5e-6, 10),
    "rte": (5e-5, 1e-5, 3),
    "sst2": (8e-5, 1e-5, 2),
    "stsb": (8e-5, 5e-6, 10),
}
"""Rate, weight decay and epochs of the base model: Warner et al. 2024, arXiv 2412.13663, table 6, the best of a sweep on the
dev set. The paper gives no batch, warm-up and length: those are BERT's above. It does not name the optimizer. Its authors'
`src/evals/glue_jobs.py` in AnswerDotAI/bert24 takes Composer's DecoupledAdamW, with decays of this size."""

RECIPES = ("bert", "modernbert")


def recipe_of(task: str, recipe: str) -> Recipe:
    """The settings of a recipe for a task. Raises UserError if the paper has none."""
    if recipe == "bert":
        return BERT
    if task not in _MODERNBERT:
        raise UserError(f"--recipe {recipe} has no settings for {task}: the paper leaves it out. Take --recipe bert")
    lr, weight_decay, epochs = _MODERNBERT[task]
    # DecoupledAdamW does not multiply the decay by the peak rate, torch's AdamW does.
    return Recipe(lr, epochs, weight_decay / lr, BERT.warmup_share, BERT.batch_rows, BERT.max_tokens)


def read_task(name: str, folder: Path) -> tuple[Examples, dict[str, Examples]]:
    """The training examples of a task and its dev sets, by name. Labels have their names in `datasets`.

    Raises:
        UserError: a file is missing, or is not what GLUE holds for this task.
    """
    task = TASKS[name]
    train = _read(name, folder, "train.tsv", "train")
    return train, {dev: _read(name, folder, *places) for dev, places in task.dev.items()}


def _read(name: str, folder: Path, file: str, split: str) -> Examples:
    task = TASKS[name]
    names = [label for label, _ in task.labels]
    if (folder / "dataset_dict.json").exists():
        examples = read_examples(folder, *task.saved, "label", split, kind=task.kind)
        spellings = {
            **{str(number): label for number, label in enumerate(names)},
            **dict(zip(names, names, strict=True)),
        }
    elif (folder / file).exists():
        examples = _read_tsv(folder / file, task)
        spellings = {spelling: label for label, spelling in task.labels}
    else:
        raise UserError(
            f"{folder} has no {file}: name the folder of {name} in GLUE's archive, such as glue_data/"
            f"{_FOLDERS[name]}, or one that `datasets` saved"
        )
    return _named(examples, spellings) if names else examples


_FOLDERS = {
    "cola": "CoLA",
    "sst2": "SST-2",
    "mrpc": "MRPC",
    "stsb": "STS-B",
    "qqp": "QQP",
    "mnli": "MNLI",
    "qnli": "QNLI",
    "rte": "RTE",
    "wnli": "WNLI",
}
"""Names of the folders in GLUE's archive."""


def _named(examples: Examples, spellings: Mapping[str, str]) -> Examples:
    """The examples with labels as `datasets` names them, by their spelling in the files."""
    labels = []
    for number, label in enumerate(examples.labels):
        if label not in spellings:
            known = ", ".join(spellings)
            raise UserError(f"{examples.place(number)}: {brief(label)} is not a label of this task: it has {known}")
        labels.append(spellings[str(label)])
    return dataclasses.replace(examples, labels=labels)


def _read_tsv(path: Path, task: GlueTask) -> Examples:
    """The examples of one of GLUE's files."""
    try:
        lines = read_plain(path).decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}): download it again") from None
    rows = [(number, line.rstrip("\r").split("\t")) for number, line in enumerate(lines, start=1) if line.strip()]
    names = list(task.names) or (rows.pop(0)[1] if rows else [])
    places = _places(path, names, task.columns)
    last = max(place for place in places if place is not None)
    whole = [(number, row) for number, row in rows if len(row) > last]
    if broken := len(rows) - len(whole):
        if broken > MOST_BROKEN * len(rows):
            first = next(number for number, row in rows if len(row) <= last)
            raise UserError(
                f"{path}: {broken} of {len(rows)} rows are too short, the first in line {first}: download it again"
            )
        warn(f"{path}: {broken} of {len(rows):,} rows are too short and are skipped")
    if not whole:
        raise UserError(f"{path} holds no rows: download it again")
    text, pair, label = places
    values = [row[label] for _, row in whole]
    numbers = [number for number, _ in whole]
    texts = [row[text] for _, row in whole]
    pairs = None if pair is None else [row[pair] for _, row in whole]
    labels = values if task.labels else _scores(path, values, numbers)
    return Examples(texts, pairs, labels, task.kind, str(path), numbers)


def _places(path: Path, names: Sequence[str], columns: tuple[str, str | None, str]) -> tuple[int, int | None, int]:
    """Where the columns stand in a row."""
    for column in columns:
        if column is not None and column not in names:
            raise UserError(
                f"{path} has no column '{column}': it has {', '.join(map(repr, names))}. Is it another task's file, or the "
                "test set, whose labels are not public?"
            )
    text, pair, label = columns
    return names.index(text), None if pair is None else names.index(pair), names.index(label)


def _scores(path: Path, values: Sequence[str], numbers: Sequence[int]) -> list[float]:
    scores = []
    for value, number in zip(values, numbers, strict=True):
        try:
            scores.append(float(value))
        except ValueError:
            raise UserError(f"{path}, line {number}: {brief(value)} is not a number: download the file again") from None
    return scores
