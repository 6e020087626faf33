"""`maskloom finetune`: tiny models learn tiny tasks."""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, pipeline

from maskloom.cli import main
from maskloom.program import EXIT_INTERRUPTED
from tests.tasks.glue_files import write

from .conftest import Command

QUICK = ["--lr", "1e-2", "--batch-rows", "8"]
"""AdamW moves a weight by about the rate a step. In some tens of steps that is far more than the 0.02 with which a tiny model's
weights are drawn, so that it learns whatever it began with."""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary files are made here. Nothing is left of them, and nothing in the environment."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    before = dict(os.environ)
    yield folder
    assert list(folder.iterdir()) == []
    assert {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"} == {
        name: value for name, value in before.items() if name != "PYTEST_CURRENT_TEST"
    }
    assert not torch.distributed.is_initialized()


def lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def texts(count: int) -> list[dict[str, str]]:
    """The class is in one word, which is there three times."""
    draw = random.Random(1)
    kinds = {"river": "water", "wind": "water", "stone": "land", "mountain": "land"}
    words = [draw.choice(list(kinds)) for _ in range(count)]
    return [
        {"text": f"the {word}, the {word} and the {word}: {number}", "label": kinds[word]}
        for number, word in enumerate(words)
    ]


def test_a_run_learns_classes_the_same_way_twice(
    trained_run: Path, tmp_path: Path, succeeds: Command, fails: Command
) -> None:
    train, test = lines(tmp_path / "train.jsonl", texts(64)), lines(tmp_path / "test.jsonl", texts(20))
    arguments = [trained_run, train, "--test", test, "--epochs", 5, *QUICK]
    out = tmp_path / "tuned"
    printed = succeeds("finetune", *arguments, "--seeds", 2, "--out", out)
    results = json.loads((out / "finetune.json").read_text())
    assert results["examples"] == {"train": 64, "test": 20}
    assert results["labels"] == ["land", "water"]
    first, second = results["seeds"]
    assert min(first["accuracy"], second["accuracy"]) >= 0.9
    assert results["mean"]["accuracy"] == pytest.approx((first["accuracy"] + second["accuracy"]) / 2)
    assert "2 classes; examples: train 64, test 20" in printed
    assert "20 of the 20 texts of test are among the training texts, too" in printed
    assert "seed 1: epoch 5 of 5, loss " in printed
    assert f"accuracy  {results['mean']['accuracy']:.4f} ± {results['standard_deviation']['accuracy']:.4f}" in printed

    assert results["kept_seed"] == 0
    assert sorted(file.name for file in out.iterdir()) == [
        "config.json",
        "finetune.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    (answer,) = pipeline("text-classification", str(out))("the stone, the stone and the stone: 7")
    assert answer["label"] == "land"

    again = json.loads(succeeds("finetune", f"{trained_run}@12", *arguments[1:], "--json"))
    assert again["seeds"] == results["seeds"][:1]
    assert "exists" in fails("finetune", *arguments, "--out", out)


def test_a_task_of_glue_starts_from_a_model_tuned_on_another(
    trained_run: Path, tmp_path: Path, succeeds: Command
) -> None:
    mnli, rte = write("mnli", tmp_path / "MNLI", 9), write("rte", tmp_path / "RTE", 8)
    tuned = tmp_path / "tuned"
    printed = succeeds("finetune", trained_run, mnli, "--task", "mnli", "--out", tuned, "--epochs", 1, *QUICK)
    assert "3 classes; examples: train 9, matched 9, mismatched 9" in printed
    assert "matched accuracy" in printed
    assert "mismatched accuracy" in printed
    assert "weight_decay 0.01, max_tokens 128" in printed
    model = AutoModelForSequenceClassification.from_pretrained(tuned)
    assert model.config.id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}

    hint = "papers start rte from a model that was fine-tuned on MNLI"
    dropped = f"{tuned} is a BertForSequenceClassification: its head is dropped, its encoder is kept"
    printed = succeeds("finetune", tuned, rte, "--task", "rte", "--recipe", "modernbert", "--epochs", 1)
    assert dropped in printed
    assert hint not in printed
    assert "epochs 1, lr 5e-05, batch_rows 32" in printed
    assert hint in succeeds("finetune", trained_run, rte, "--task", "rte", "--epochs", 1)


def test_tags_are_learned_and_the_best_epoch_is_kept(trained_run: Path, tmp_path: Path, succeeds: Command) -> None:
    draw = random.Random(2)
    rows = []
    for _ in range(40):
        words = [draw.choice(["stone", "river", "the", "of"]) for _ in range(6)]
        rows.append({"tokens": words, "tags": ["B-X" if word == "river" else "O" for word in words]})
    data = lines(tmp_path / "tags.jsonl", rows)
    dev = lines(tmp_path / "dev.jsonl", rows[:10])
    printed = succeeds("finetune", trained_run, data, "--dev", dev, "--epochs", 2, "--max-tokens", 6, *QUICK)
    assert "2 tags" in printed
    assert "50 of 50 examples are cut off at 6 tokens" in printed
    kept = [float(line.split()[-1]) for line in printed.splitlines() if "F1 of spans of the dev set" in line]
    assert len(kept) == 2
    result = json.loads(succeeds("finetune", trained_run, data, "--epochs", 3, "--json", *QUICK))
    assert result["mean"]["span_f1"] >= 0.9
    assert result["cut"] == {"train": 0, "test": 0}


def test_numbers_of_pairs_are_learned_and_from_scratch_too(
    trained_run: Path, tmp_path: Path, succeeds: Command
) -> None:
    draw = random.Random(3)
    rows = []
    for number in range(60):
        word = draw.choice(["river", "stone"])
        rows.append(f'"{number} the {word}",of it,{4.5 if word == "river" else 0.5}')
    data = tmp_path / "pairs.csv"
    data.write_text("one,two,score\n" + "\n".join(rows) + "\n")
    columns = ["--text", "one", "--pair", "two", "--label", "score"]
    result = json.loads(
        succeeds("finetune", trained_run, data, *columns, "--from-scratch", "--epochs", 6, "--json", *QUICK)
    )
    assert result["mean"]["pearson"] >= 0.9
    assert result["labels"] == []
    assert result["most_frequent"] == {}


def test_what_cannot_be_done_is_said_before_training(
    trained_run: Path, tmp_path: Path, fails: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = lines(tmp_path / "data.jsonl", texts(20))
    other = lines(tmp_path / "other.jsonl", [{"text": "x", "label": "fire"}])
    numbers = lines(tmp_path / "numbers.jsonl", [{"text": "x", "label": 0.5}])
    pairs = lines(tmp_path / "pairs.jsonl", [{"sentence1": "x", "sentence2": "y", "label": "land"}])
    assert "other.jsonl, line 1: the label 'fire' is not in the training data, which has land, water" in fails(
        "finetune", trained_run, data, "--test", other
    )
    assert "numbers.jsonl has numbers as labels" in fails("finetune", trained_run, data, "--test", numbers)
    assert "one has pairs of texts, the other single texts" in fails("finetune", trained_run, data, "--test", pairs)
    assert "not a number" in fails("finetune", trained_run, data, "--kind", "numbers")
    assert "knows its files and columns: leave out --label" in fails(
        "finetune", trained_run, data, "--task", "rte", "--label", "label"
    )
    assert "--recipe bert is of GLUE's tasks" in fails("finetune", trained_run, data, "--recipe", "bert")
    assert "--max-tokens 513: " in fails("finetune", trained_run, data, "--max-tokens", 513)
    assert "--max-tokens 2: a text has no room beside the first and the last token" in fails(
        "finetune", trained_run, data, "--max-tokens", 2
    )
    assert "--step is for a run, and" in fails("finetune", tmp_path, data, "--step", 3)
    assert "neither a run directory nor a Hugging Face checkpoint" in fails("finetune", tmp_path, data)
    assert f"{trained_run} at step 8 reads at most" in fails("finetune", f"{trained_run}@8", data, "--max-tokens", 513)
    assert "has no checkpoint of step 9" in fails("finetune", f"{trained_run}@9", data)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "it cannot be fetched from the Hub" in fails("finetune", "someone/some-model@v1", data)
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr("maskloom.commands.loading.folder_of", lambda *named: asked.append(named) or tmp_path)
    fails("finetune", "someone/model@v2", data)
    assert asked == [("someone/model", "someone/model@v2", "v2")]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "fine-tuning needs accelerate: pip install 'maskloom[tasks]'" in fails("finetune", trained_run, data)


def test_weights_that_are_not_finite_give_no_figures(trained_run: Path, tmp_path: Path, fails: Command) -> None:
    data = lines(tmp_path / "data.jsonl", texts(40))
    said = fails("finetune", trained_run, data, *QUICK, "--lr", "1e38", "--epochs", 2, "--out", tmp_path / "out")
    assert "seed 0: the weights are not finite (NaN or infinite) after training: lower --lr" in said
    assert not (tmp_path / "out").exists()


def test_an_interrupt_leaves_nothing(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from maskloom.tasks import training

    def interrupted(trainer: object) -> None:
        (Path(trainer.args.output_dir)).mkdir(parents=True, exist_ok=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(training.Trainer, "train", interrupted)
    data, out = lines(tmp_path / "data.jsonl", texts(20)), tmp_path / "out"
    before = sorted(tmp_path.iterdir())
    assert main(["finetune", str(trained_run), str(data), "--out", str(out)]) == EXIT_INTERRUPTED
    assert main(["finetune", str(trained_run), str(data)]) == EXIT_INTERRUPTED
    assert sorted(tmp_path.iterdir()) == before
    assert "maskloom finetune: interrupted" in capsys.readouterr().err
