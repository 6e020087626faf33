"""`maskloom eval` prints the figures that the run itself logged, and what token frequencies alone would give."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from transformers import ElectraConfig, ElectraForMaskedLM

from maskloom.commands.loading import load_run
from maskloom.data.index.loading import load_index
from maskloom.data.masking import MaskRule
from maskloom.data.plan import open_corpora
from maskloom.distributed import World
from maskloom.runs import read_metrics
from maskloom.tokenizers.base import Tokenizer
from maskloom.train.evaluation import evaluate, unigram_entropy

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


def test_the_figures_are_exactly_those_of_evaluate(trained_run: Path, succeeds: Command) -> None:
    """Counting by band changes nothing, to the last digit."""
    figures = json.loads(succeeds("eval", trained_run, "--json"))
    loaded = load_run(trained_run, None)
    settings = loaded.config.evaluation_filled
    rule = MaskRule.held_out(loaded.config.masking, settings.mask_rate, loaded.tokenizer)
    corpora = open_corpora(loaded.config.data)
    expected = evaluate(loaded.model, corpora, loaded.tokenizer, settings, rule, torch.device("cpu"), World())
    assert {name: figures[name] for name in expected} == expected
    bands = figures["accuracy_by_frequency"]
    assert sum(band["tokens"] for band in bands) == expected["evaluation_tokens"]
    hits = sum(band["tokens"] * band["accuracy"] for band in bands)
    assert hits == pytest.approx(expected["evaluation_accuracy"] * expected["evaluation_tokens"])


@pytest.fixture(scope="module")
def other_model(tokenizer_dir: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained ELECTRA, which maskloom does not train, with the run's tokenizer."""
    folder = tmp_path_factory.mktemp("electra")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    ElectraForMaskedLM(ElectraConfig(vocab_size=tokenizer.vocab_size, **shape)).save_pretrained(folder)
    shutil.copy(tokenizer_dir / "tokenizer.json", folder)
    return folder


def test_models_side_by_side(trained_run: Path, corpus_dir: Path, other_model: Path, succeeds: Command) -> None:
    """Steps of a run and another architecture on what a corpus holds out, as a table and as JSON."""
    arguments = ("eval", f"{trained_run}@8", trained_run, other_model, "--data", corpus_dir)
    found = json.loads(succeeds(*arguments, "--json"))
    names = [f"{trained_run} at step 8", f"{trained_run} at step 12", str(other_model)]
    assert [model["model"] for model in found["models"]] == names
    assert [model["step"] for model in found["models"]] == [8, 12, None]
    assert found["documents"] == found["documents_found"] == load_index(corpus_dir).header["held_out_documents"]
    assert found["same_tokens"]
    assert len({model["tokens"] for model in found["models"]}) == 1
    earlier, newest, other = (model["nats_per_byte"] for model in found["models"])
    assert newest < earlier < other
    assert found["models"][1]["more_nats_per_byte"] == pytest.approx(newest - earlier)
    text = succeeds(*arguments)
    for number, name in enumerate(names, 1):
        assert f"[{number}] {name}\n" in text
    assert f"{earlier:.4f}  " in text
    assert "not comparable" not in text


def test_an_export_is_its_run(trained_run: Path, tmp_path: Path, corpus_dir: Path, succeeds: Command) -> None:
    succeeds("export", trained_run, tmp_path / "model")
    arguments = ("--data", corpus_dir, "--documents", 5, "--pseudo-perplexity", "--sentences", 2, "--json")
    first, second = json.loads(succeeds("eval", trained_run, tmp_path / "model", *arguments))["models"]
    assert second.pop("more_nats_per_byte") == second.pop("standard_error") == 0.0
    assert {**first, "model": "", "step": None} == {**second, "model": ""}
    assert first["pseudo_sentences"] == 2
    alone = json.loads(succeeds("eval", trained_run, *arguments[2:]))  # on its own corpus, which is the same
    assert alone["pseudo_perplexity"] == first["pseudo_perplexity"]


def test_different_tokenizers_are_said(
    trained_run: Path, other_model: Path, documents: list[str], tmp_path: Path, succeeds: Command
) -> None:
    changed = shutil.copytree(other_model, tmp_path / "model")
    definition = json.loads((changed / "tokenizer.json").read_text())
    definition["normalizer"]["lowercase"] = False
    (changed / "tokenizer.json").write_text(json.dumps(definition))
    (tmp_path / "text.txt").write_text(documents[0])
    text = succeeds("eval", trained_run, changed, "--data", tmp_path / "text.txt")
    assert "Figures a token are not comparable between these columns" in text


def test_what_cannot_be_compared(
    trained_run: Path, corpus_dir: Path, other_model: Path, minilm_dir: Path, tmp_path: Path, fails: Command
) -> None:
    data = ("--data", corpus_dir)
    assert "several models are compared on one text" in fails("eval", trained_run, other_model)
    assert f"{other_model} is not a run" in fails("eval", other_model)
    assert "with several models, write RUN@STEP" in fails("eval", trained_run, other_model, "--step", 8, *data)
    assert "--step is for a run" in fails("eval", other_model, "--step", 8, *data)
    assert "data.train=x is for a run on its own corpora" in fails("eval", trained_run, "data.train=x", *data)
    assert "--mask-rate is for --data" in fails("eval", trained_run, "--mask-rate", 0.3)
    assert "--documents is for --data" in fails("eval", trained_run, "--documents", 3)
    assert "--sentences is for --pseudo-perplexity" in fails("eval", trained_run, "--sentences", 3, *data)
    assert "name a model" in fails("eval", "data.train=x", *data)
    assert "has no head for masked tokens" in fails("eval", minilm_dir, *data)
    assert "neither a run directory nor" in fails("eval", tmp_path, *data)
    assert "has no checkpoint of step 7; it has those of 8, 12" in fails("eval", f"{trained_run}@7", *data)


def test_a_name_on_a_hub_that_cannot_be_reached(
    corpus_dir: Path, monkeypatch: pytest.MonkeyPatch, fails: Command
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = fails("eval", "someone/some-model@v1", "--data", corpus_dir)
    assert (
        "someone/some-model@v1 cannot be loaded: there is no such folder, and it cannot be fetched from the Hub"
        in message
    )
