"""`maskloom eval` prints the figures that the run itself logged, and what token frequencies alone would give."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from maskloom.data.index.loading import load_index
from maskloom.data.masking import MaskRule
from maskloom.tokenizers.base import Tokenizer
from maskloom.train.evaluation import unigram_entropy
from maskloom.train.metrics import read_metrics

from .conftest import Command


def test_the_figures_are_those_that_training_logged(
    trained_run: Path, corpus_dir: Path, tokenizer: Tokenizer, succeeds: Command
) -> None:
    figures = json.loads(succeeds("eval", trained_run, "--json"))
    lines = read_metrics(trained_run)
    before, logged = (line for line in lines if "evaluation_loss" in line)
    assert (before["step"], logged["step"]) == (0, 12)
    for name in ("evaluation_loss", "evaluation_perplexity", "evaluation_accuracy", "evaluation_tokens"):
        assert figures[name] == pytest.approx(logged[name], rel=1e-5)
    assert figures["step"] == 12
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 12
    assert figures["training_loss"] == pytest.approx(sum(losses[10:]) / 2)  # the last tenth of 12 steps, rounded up
    assert figures["unigram_entropy"] == unigram_entropy([load_index(corpus_dir)], tokenizer, MaskRule(0.15))


def test_the_text_holds_the_same_figures(trained_run: Path, succeeds: Command) -> None:
    figures = json.loads(succeeds("eval", trained_run, "--json"))
    text = succeeds("eval", trained_run)
    assert f"step 12 of {trained_run}" in text
    assert f"{figures['evaluation_loss']:.3f} nats a token ({int(figures['evaluation_tokens']):,} tokens)" in text
    assert f"{figures['evaluation_perplexity']:,.1f}" in text
    assert f"{figures['evaluation_accuracy']:.1%} of the masked tokens" in text
    assert f"{figures['training_loss']:.3f}" in text
    assert f"{figures['unigram_entropy']:.3f}" in text


def test_an_earlier_step_has_figures_of_its_own(trained_run: Path, succeeds: Command) -> None:
    newest, earlier = (json.loads(succeeds("eval", trained_run, "--json", "--step", step)) for step in (12, 8))
    assert earlier["step"] == 8
    assert earlier["evaluation_loss"] != newest["evaluation_loss"]
    assert earlier["evaluation_tokens"] == newest["evaluation_tokens"]  # the same masks
    losses = {line["step"]: line["loss"] for line in read_metrics(trained_run) if "loss" in line}
    assert earlier["training_loss"] == pytest.approx(losses[8])  # the last tenth of 8 steps, rounded up


@pytest.mark.parametrize("kind", ["no held-out documents", "no predicted token"])
def test_nothing_to_evaluate_is_an_error(
    kind: str, trained_run: Path, tmp_path: Path, succeeds: Command, fails: Command
) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    tree = yaml.safe_load((run / "config.yaml").read_text())
    if kind == "no held-out documents":
        (tmp_path / "text.txt").write_text("river and tree")
        succeeds("shards", tmp_path / "text.txt", tmp_path / "corpus", "--val-fraction", 0, "--processes", 1)
        tree["data"]["train"] = str(tmp_path / "corpus")
        expected = "holds no held-out documents"
    else:
        tree["evaluation"]["mask_rate"] = 1e-9  # of any row it is no token
        expected = "no token of the held-out documents"
    (run / "config.yaml").write_text(yaml.safe_dump(tree))
    assert expected in fails("eval", run)


def test_what_is_not_a_run_is_refused(tmp_path: Path, fails: Command) -> None:
    assert "is not a run" in fails("eval", tmp_path)


def test_a_damaged_checkpoint_is_refused(trained_run: Path, tmp_path: Path, fails: Command) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    (run / "checkpoints" / "step-00000012" / "manifest.json").write_text("{")
    assert "step-00000012 is damaged: its manifest cannot be read" in fails("eval", run, "--step", 12)
