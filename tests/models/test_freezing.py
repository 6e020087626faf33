"""What a run does not train. Whole runs are in tests/integration/test_freeze.py."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from maskloom.config import Optimizer
from maskloom.config_file import parse_config
from maskloom.errors import UserError
from maskloom.models.freezing import FROZEN, freeze, frozen_note, frozen_weights, load_frozen, read_frozen, write_frozen
from maskloom.models.masked_lm import MaskedLM, decoder_of, embedding_of
from maskloom.optim import OPTIMIZERS, parameter_groups
from maskloom.tokenizers.base import Tokenizer
from tests.architectures import EACH, tiny_model


def trained(model: MaskedLM) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@EACH
def test_a_frozen_encoder_leaves_the_head_and_frozen_embeddings_the_rest(
    architecture: str, tokenizer: Tokenizer
) -> None:
    model = tiny_model(architecture, tokenizer)
    freeze(model, "encoder")
    head = trained(model)
    assert all(name.startswith(model.architecture.head_names) for name in head)
    embedding = embedding_of(model).weight  # some classes name it after the decoder
    rest = {name for name, each in model.named_parameters() if each is not embedding}
    assert head == {name for name in rest if not name.startswith(model.architecture.prefix)}
    assert not embedding_of(model).weight.requires_grad
    assert decoder_of(model).weight.requires_grad == (not model.config.tie_word_embeddings)
    count = sum(model.get_parameter(name).numel() for name in head)
    assert f"model.freeze encoder: {count:,} of " in frozen_note(model, "encoder")
    for name in OPTIMIZERS:
        groups = parameter_groups(model, Optimizer(name=name, gradient_clipping=0.0))
        assert {id(each) for group in groups for each in group["params"]} == {
            id(model.get_parameter(each)) for each in head
        }
        assert all(group["params"] for group in groups)
    freeze(model, "embeddings")
    assert [each for each in frozen_weights(model).values() if each.shape != embedding_of(model).weight.shape] == []
    freeze(model, None)
    assert not frozen_weights(model)
    assert frozen_note(model, None) == ""


def test_frozen_weights_are_written_and_read_back(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model, other = tiny_model("bert", tokenizer), tiny_model("bert", tokenizer)
    for each in (model, other):
        freeze(each, "encoder")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    kept = frozen_weights(model)
    write_frozen(tmp_path, kept)
    load_frozen(other, tmp_path)
    assert all(torch.equal(other.get_parameter(name), weight) for name, weight in kept.items())
    assert not torch.equal(decoder_of(other).bias, decoder_of(model).bias)
    (tmp_path / FROZEN).unlink()
    assert read_frozen(tmp_path) == {}
    with pytest.raises(UserError, match=r"does not hold bert\.embeddings\.word_embeddings\.weight"):
        load_frozen(other, tmp_path)
    (tmp_path / FROZEN).write_bytes(b"cut off")
    with pytest.raises(UserError, match="is damaged"):
        load_frozen(other, tmp_path)


def test_a_value_that_was_changed_on_the_disk_is_noticed(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """No checkpoint's manifest has a digest of this file."""
    model = tiny_model("bert", tokenizer)
    freeze(model, "encoder")
    write_frozen(tmp_path, frozen_weights(model))
    data = bytearray((tmp_path / FROZEN).read_bytes())
    data[-1] ^= 1
    (tmp_path / FROZEN).write_bytes(data)
    with pytest.raises(UserError, match="is damaged: its weights are not those of its digest"):
        read_frozen(tmp_path)


def test_something_has_to_be_left(tokenizer: Tokenizer) -> None:
    model = tiny_model("bert", tokenizer)
    type(model).architecture, before = (
        dataclasses.replace(model.architecture, head_names=("none.",)),
        model.architecture,
    )
    try:
        with pytest.raises(UserError, match=r"model\.freeze encoder leaves nothing to train"):
            freeze(model, "encoder")
    finally:
        type(model).architecture = before


def test_weights_that_nobody_trained_are_not_kept(run_config: dict) -> None:
    given = run_config | {"model": run_config["model"] | {"freeze": "encoder"}}
    with pytest.raises(
        UserError, match=r"model\.freeze encoder would keep weights that nobody trained: set model\.init"
    ):
        parse_config(given, "here")
    assert (
        parse_config(run_config | {"model": {"init": "folder", "freeze": "encoder"}}, "here").model.freeze == "encoder"
    )
