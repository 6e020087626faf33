"""examples/add_architecture.py: DistilBERT from outside of the package is what Hugging Face's is, in every command."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM, DistilBertConfig, DistilBertForMaskedLM

from maskloom import cli
from maskloom.config import MODELS, Bert, Engine
from maskloom.config_file import dump_config, parse_config
from maskloom.errors import UserError
from maskloom.models.architecture import ARCHITECTURES, add
from maskloom.models.build import build_model
from maskloom.models.masked_lm import MaskedLM, hidden_matrices, packed
from maskloom.models.overflow import find_overflow
from maskloom.tokenizers.base import Tokenizer
from maskloom.train.engine.forward import prepare_forward
from maskloom.train.resume import reconcile

from ..fixtures.make import DIED, die_after
from ..integration.conftest import environment, losses, train_in_ranks
from ..models.test_bert import bucket, make_rows
from .imports import EXAMPLES, imported, in_a_rank

NAME = "add_architecture"
SHAPE = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}


@pytest.fixture(scope="module", autouse=True)
def example() -> Iterator[None]:
    with imported(NAME):
        yield


def pair(vocab_size: int, **more: Any) -> tuple[MaskedLM, DistilBertForMaskedLM]:
    """Ours and Hugging Face's with the same weights, all of them different."""
    torch.manual_seed(0)
    without = {"dropout": 0.0, "attention_dropout": 0.0}
    config = DistilBertConfig(**{"vocab_size": vocab_size, "max_position_embeddings": 64, **SHAPE, **without, **more})
    theirs = DistilBertForMaskedLM(config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    ours = DistilBertForMaskedLM(config)
    ours.load_state_dict(theirs.state_dict())
    return packed(ours), theirs


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_packed_pieces_are_hugging_faces_one_by_one(activation: str, tokenizer: Tokenizer) -> None:
    """Logits, loss and gradients of rows of several pieces."""
    ours, theirs = pair(tokenizer.vocab_size, activation=activation)
    rows = make_rows([[9, 23], [32], [5, 7, 12]], tokenizer)
    batch = bucket(rows, tokenizer)
    expected = []
    for tokens, ids, starts, chosen in zip(rows.tokens, rows.input_ids, rows.starts, rows.chosen, strict=True):
        ends = [*starts.nonzero()[0], len(ids)]
        for begin, end in itertools.pairwise(ends):
            if tokens[begin] != tokenizer.pad_id:
                alone = torch.from_numpy(ids[None, begin:end]).long()
                expected.append(theirs(input_ids=alone).logits[0, torch.from_numpy(chosen[begin:end])])
    real = batch.weights > 0
    reference = torch.cat(expected)
    torch.testing.assert_close(ours.masked_logits(batch)[real], reference, atol=1e-5, rtol=0)
    assert reference.std() > 0.1

    torch.nn.functional.cross_entropy(reference, batch.targets[real], reduction="sum").backward()
    loss, _ = ours(batch)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    largest = max(gradient.norm() for gradient in gradients.values())
    for name, parameter in ours.named_parameters():
        assert (parameter.grad - gradients[name]).norm() <= 1e-4 * largest, name


def test_dropout_acts_in_training_alone(tokenizer: Tokenizer) -> None:
    for name in ("dropout", "attention_dropout"):
        ours, _ = pair(tokenizer.vocab_size, **{name: 0.5})
        batch = bucket(make_rows([[32], [10, 20]], tokenizer), tokenizer)
        ours.train()
        assert not torch.equal(ours.masked_logits(batch), ours.masked_logits(batch)), name
        ours.eval()
        assert torch.equal(ours.masked_logits(batch), ours.masked_logits(batch)), name


def test_what_is_asked_of_it_elsewhere(tokenizer: Tokenizer) -> None:
    """Muon's matrices, the sparse gradient of the embeddings, and where numbers overflow."""
    ours, _ = pair(tokenizer.vocab_size)
    names = {parameter: name for name, parameter in ours.named_parameters()}
    found = [names[matrix] for matrix in hidden_matrices(ours)]
    assert len(found) == 2 * 6
    assert all(name.startswith("distilbert.transformer.layer.") for name in found)
    prepare_forward(ours, Engine(zero_stage=1, kernels="eager"))
    assert ours.distilbert.embeddings.word_embeddings.sparse
    half = ours.half().train()
    batch = bucket(make_rows([[32]], tokenizer), tokenizer)
    assert find_overflow(half, batch, 1.0) is None
    with torch.no_grad():
        half.get_parameter("distilbert.transformer.layer.1.ffn.lin2.bias")[3] = torch.inf
    assert find_overflow(half, batch, 1.0) == "the output of layer 1 (distilbert.transformer.layer.1)"


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="there is an architecture 'distilbert' already"):
        add(ARCHITECTURES["distilbert"])


def test_its_section_is_its_own(run_config: dict) -> None:
    run_config["model"] = {"architecture": "distilbert", "hidden_size": 32}
    with pytest.raises(UserError, match=r"unknown key 'model\.hidden_size': it belongs to architecture bert"):
        parse_config(run_config, "run.yaml")
    run_config["model"] = {"architecture": "distil"}
    with pytest.raises(
        UserError, match=r"model\.architecture = 'distil': there is no such .* bert, .*distilbert, .*--import"
    ):
        parse_config(run_config, "run.yaml")


def test_the_architecture_follows_from_a_checkpoint(tokenizer: Tokenizer, tmp_path: Path) -> None:
    _, theirs = pair(tokenizer.vocab_size)
    theirs.save_pretrained(tmp_path)
    model, line = build_model(Bert(init=str(tmp_path)), tokenizer, 0)
    assert model.architecture is ARCHITECTURES["distilbert"]
    assert line.endswith("ignored: nothing; newly initialised: nothing")
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    with pytest.raises(UserError, match=r"is a 'distilbert' model, and model\.architecture is 'bert'"):
        build_model(Bert(init=str(tmp_path), architecture="bert"), tokenizer, 0)
    with pytest.raises(UserError, match="is a 'distilbert' model, which has no hidden_dropout_prob"):
        build_model(Bert(init=str(tmp_path), hidden_dropout_prob=0.2), tokenizer, 0)


def test_a_run_from_a_checkpoint_keeps_its_architecture(run_config: dict, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """It is in the run's config.yaml, so that the checkpoint may be gone when the run resumes."""
    pair(tokenizer.vocab_size)[1].save_pretrained(tmp_path / "model")
    run_config["model"] = {"init": str(tmp_path / "model")}
    given = parse_config(run_config, "run.yaml")
    begun = reconcile(given)
    assert begun.model.architecture == "distilbert"
    assert isinstance(begun.model, MODELS["distilbert"])
    folder = Path(run_config["run_dir"])
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_config(begun))
    shutil.rmtree(tmp_path / "model")
    assert reconcile(given).model == begun.model


@pytest.fixture
def tree(run_config: dict) -> dict:
    run_config["model"] = {"architecture": "distilbert", "attention_dropout": 0.1, **SHAPE}
    run_config["evaluation"] = {"every_steps": 12, "seq_len": 32}
    return run_config


def test_a_run_of_it(
    tree: dict,
    write_config: Callable[..., Path],
    maskloom: Callable[..., Any],
    tokenizer: Tokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Trained by `--import` at ZeRO 0, resumed with the same bits, trained at ZeRO 3 by two ranks; then every command."""
    tree["engine"] = {"zero_stage": 0}
    config, run = write_config(tree), tmp_path / "run"
    paths = f"{EXAMPLES}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = maskloom("train", "--import", NAME, config, env=environment(PYTHONPATH=paths))
    assert done.returncode == 0, done.stderr
    expected = losses(run)
    assert sorted(expected) == list(range(1, 13))
    assert expected[12] < expected[1]

    again = write_config({**tree, "run_dir": str(tmp_path / "again")}, "again.yaml")
    train_in_ranks([again], 1, tmp_path / "log", expect=DIED, patch=partial(in_a_rank, NAME, partial(die_after, 6)))
    train_in_ranks([again], 1, tmp_path / "log", patch=partial(in_a_rank, NAME))
    assert losses(tmp_path / "again") == expected

    spread = {**tree, "run_dir": str(tmp_path / "spread"), "engine": {"zero_stage": 3}}
    spread["model"] = {**tree["model"], "dropout": 0.0, "attention_dropout": 0.0}
    alone = {**spread, "run_dir": str(tmp_path / "alone"), "engine": {"zero_stage": 0}}
    train_in_ranks([write_config(spread, "spread.yaml")], 2, tmp_path / "log", patch=partial(in_a_rank, NAME))
    train_in_ranks([write_config(alone, "alone.yaml")], 1, tmp_path / "log", patch=partial(in_a_rank, NAME))
    assert losses(tmp_path / "spread") == pytest.approx(losses(tmp_path / "alone"), abs=1e-4)

    assert cli.main(["export", str(run), str(tmp_path / "out")]) == 0
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    assert type(theirs) is DistilBertForMaskedLM
    ours = packed(DistilBertForMaskedLM.from_pretrained(tmp_path / "out")).eval()
    batch = bucket(rows := make_rows([[32]], tokenizer), tokenizer)
    logits = theirs(input_ids=torch.from_numpy(rows.input_ids).long()).logits[torch.from_numpy(rows.chosen)]
    torch.testing.assert_close(ours.masked_logits(batch)[batch.weights > 0], logits, atol=1e-5, rtol=0)

    capsys.readouterr()
    for model in (run, tmp_path / "out"):
        assert cli.main(["fill", str(model), "a [MASK] ."]) == 0
        assert "[MASK] at token 2" in capsys.readouterr().out
    assert cli.main(["eval", str(run)]) == 0
    assert "held-out loss" in capsys.readouterr().out
