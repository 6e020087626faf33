"""Encoders with a new head for a task."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from maskloom.errors import UserError
from maskloom.tasks.heads import open_encoder, with_head
from maskloom.tasks.target import Target
from maskloom.tokenizers.base import Tokenizer
from tests.architectures import EACH

from .folders import exported

CLASSES = Target("classes", ("a", "b", "c"), ("accuracy",))
TAGS = Target("tags", ("B-X", "O"), ("span_f1",))
NUMBERS = Target("numbers", (), ("pearson",))


@pytest.fixture
def folder(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    return exported("bert", tokenizer, tmp_path / "model")


@EACH
def test_the_encoder_keeps_its_weights_and_gets_a_head(architecture: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    encoder = open_encoder(exported(architecture, tokenizer, tmp_path), "made")
    stored = load_file(tmp_path / "model.safetensors")
    for target, outputs in ((CLASSES, 3), (TAGS, 2), (NUMBERS, 1)):
        model, drawn = with_head(encoder, target, seed=1)
        weights = model.state_dict()
        kept = [name for name in weights if name in stored and name.startswith(model.base_model_prefix)]
        assert kept
        assert all(torch.equal(weights[name], stored[name]) for name in kept)
        assert {name for name in weights if name not in stored} - {"bert.embeddings.position_ids"} == set(drawn)
        batch = {name: torch.tensor([ids]) for name, ids in encoder.tokenizer("a river").items()}
        assert model(**batch).logits.shape[-1] == outputs
        assert model.config.id2label == dict(enumerate(target.names or ("LABEL_0",)))
    again, _ = with_head(encoder, NUMBERS, seed=1)
    other, _ = with_head(encoder, NUMBERS, seed=2)
    drawn_here = drawn[-1]
    assert torch.equal(model.get_parameter(drawn_here), again.get_parameter(drawn_here)) or "bias" in drawn_here
    heads = [name for name in drawn if name.endswith("weight")]
    assert all(torch.equal(model.get_parameter(name), again.get_parameter(name)) for name in heads)
    assert any(not torch.equal(model.get_parameter(name), other.get_parameter(name)) for name in heads)


@EACH
def test_the_head_of_a_fine_tuned_model_is_dropped(architecture: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    encoder = open_encoder(exported(architecture, tokenizer, tmp_path / "model"), "made")
    assert encoder.head == ""
    model, _ = with_head(encoder, CLASSES, seed=1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1.0)
    tuned_folder = shutil.copytree(tmp_path / "model", tmp_path / "tuned")
    model.save_pretrained(tuned_folder)
    tuned = open_encoder(tuned_folder, "tuned")
    assert tuned.head == type(model).__name__
    again, drawn = with_head(tuned, CLASSES, seed=1)
    prefix = f"{model.base_model_prefix}."
    for name, weight in again.named_parameters():
        assert torch.equal(weight, model.get_parameter(name)) == name.startswith(prefix), name
        assert (name in drawn) != name.startswith(prefix)


def test_from_scratch_nothing_is_kept(folder: Path) -> None:
    encoder = open_encoder(folder, "made")
    stored = load_file(folder / "model.safetensors")
    model, drawn = with_head(encoder, CLASSES, seed=1, from_scratch=True)
    matrices = [name for name, weight in model.named_parameters() if weight.ndim > 1 and name in stored]
    assert matrices
    assert not any(torch.equal(model.get_parameter(name), stored[name]) for name in matrices)
    assert set(drawn) == {name for name, _ in model.named_parameters()}


def test_weights_are_fp32_whatever_was_stored(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    save_file(
        {name: weight.bfloat16() for name, weight in stored.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    model, _ = with_head(open_encoder(folder, "made"), CLASSES, seed=1)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_a_folder_that_cannot_be_fine_tuned_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone is neither a run directory nor a Hugging Face checkpoint"):
        open_encoder(tmp_path / "gone", "gone")

    def copy(name: str) -> Path:
        return shutil.copytree(folder, tmp_path / name)

    bare = copy("bare")
    for file in bare.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match="bare has no tokenizer"):
        open_encoder(bare, "bare")

    small = copy("small")
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
    with pytest.raises(UserError, match="small: the tokenizer has 400 ids, the model 300: they do not belong together"):
        open_encoder(small, "small")

    partly = copy("partly")
    stored = load_file(partly / "model.safetensors")
    lacking = {name: weight for name, weight in stored.items() if ".layer.1." not in name}
    save_file(lacking, partly / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UserError, match=r"partly is not a whole encoder: it lacks 16 weights, such as bert\.encoder\.layer\.1"
    ):
        with_head(open_encoder(partly, "partly"), CLASSES, 0)

    damaged = copy("damaged")
    (damaged / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="damaged cannot be loaded: "):
        with_head(open_encoder(damaged, "damaged"), CLASSES, 0)
    (damaged / "config.json").write_text("{")
    with pytest.raises(UserError, match="damaged cannot be loaded: "):
        open_encoder(damaged, "damaged")


def test_code_of_a_checkpoint_is_not_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is anybody asked whether it may."""
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom transformers import BertConfig\n")
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "unheard_of", "auto_map": {"AutoConfig": "code.BertConfig"}}
    (folder / "config.json").write_text(json.dumps(config | own))
    monkeypatch.setattr("builtins.input", lambda prompt="": "y")
    with pytest.raises(UserError, match=r"made cannot be loaded: .* contains custom code"):
        open_encoder(folder, "made")
    assert not (tmp_path / "ran").exists()
