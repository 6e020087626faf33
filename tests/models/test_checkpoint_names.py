"""Whatever wraps it: a checkpoint of each architecture loads, and a line says what was ignored and what is new."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
)

from maskloom.config import MODELS
from maskloom.models.architecture import ARCHITECTURES
from maskloom.models.base import Architecture
from maskloom.models.build import build_defined, build_model, save_definition
from maskloom.models.masked_lm import decoder_of, embedding_of
from maskloom.models.warm_start import check_init
from maskloom.tokenizers.base import Tokenizer
from tests.models.parity import assert_is_hugging_faces, pair

TINY = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)


def config_of(architecture: Architecture, tokenizer: Tokenizer, **more: Any) -> PretrainedConfig:
    shape = {**TINY, "max_position_embeddings": 70, **dict.fromkeys(architecture.dropouts, 0.0), **more}
    return architecture.config(architecture.settings(**shape), tokenizer)


def saved(architecture: Architecture, tokenizer: Tokenizer, folder: Path, **more: Any) -> dict[str, torch.Tensor]:
    """Write a checkpoint. Returns the weights in it, by their names in the file."""
    _, theirs = pair(config_of(architecture, tokenizer, **more))
    theirs.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def loaded(architecture: Architecture, folder: Path, tokenizer: Tokenizer) -> tuple[Any, str]:
    check_init(str(folder), tokenizer, {"phases.0.seq_len": 64})
    dropouts = dict.fromkeys(architecture.dropouts, 0.0)
    return build_model(MODELS[architecture.name](init=str(folder), **dropouts), tokenizer, 0)


def assert_holds(model: Any, weights: dict[str, torch.Tensor]) -> None:
    for name, tensor in weights.items():
        assert torch.equal(model.state_dict()[name], tensor), name


WRAPPERS: dict[str, Callable[[str], str]] = {
    "DDP": lambda name: f"module.{name}",
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "Lightning": lambda name: f"model.{name}",
    "Lightning, compiled": lambda name: f"model._orig_mod.{name}",
    "DeepSpeed": lambda name: f"_forward_module.module.{name}",
    "FSDP": lambda name: f"_fsdp_wrapped_module.{name}",
    "checkpointing": lambda name: name.replace("layers.1.", "layers.1._checkpoint_wrapped_module.").replace(
        "layer.1.", "layer.1._checkpoint_wrapped_module."
    ),
}


@each_architecture
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_model_loads(architecture: Architecture, wrapper: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    weights = saved(architecture, tokenizer, tmp_path)
    renamed = {WRAPPERS[wrapper](name): tensor for name, tensor in weights.items()}
    assert renamed.keys() != weights.keys()
    save_file(renamed, tmp_path / "model.safetensors")
    model, line = loaded(architecture, tmp_path, tokenizer)
    assert line.endswith("; ignored: nothing; newly initialised: nothing")
    assert_holds(model, weights)


@each_architecture
@pytest.mark.parametrize("wrapper", ["", "model.", "module.", "_orig_mod.", "_forward_module.model."])
@pytest.mark.parametrize("pickled", [False, True])
def test_an_encoder_without_a_head_loads(
    architecture: Architecture, wrapper: str, pickled: bool, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """As `AutoModel` saves it, with the pooler if it has one."""
    torch.manual_seed(5)
    encoder = AutoModel.from_config(config_of(architecture, tokenizer))
    encoder.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert not any(name.startswith(architecture.prefix) for name in weights)
    renamed = {f"{wrapper}{name}": tensor for name, tensor in weights.items()}
    save_file(renamed, tmp_path / "model.safetensors")
    if pickled:
        (tmp_path / "model.safetensors").unlink()
        torch.save(renamed, tmp_path / "pytorch_model.bin")
    model, line = loaded(architecture, tmp_path, tokenizer)
    ignored, fresh = line.split("; ")[-2:]
    assert (ignored == "ignored: nothing") == (not architecture.spare_names)
    assert all("pooler" in each for each in ignored.removeprefix("ignored: ").split(", ") if each != "nothing")
    new = [each.removesuffix("*") for each in fresh.removeprefix("newly initialised: ").split(", ")]
    assert {next(head for head in architecture.head_names if f"{each}x".startswith(head)) for each in new} == set(
        architecture.head_names
    )
    assert_holds(
        model, {f"{architecture.prefix}{name}": each for name, each in weights.items() if "pooler" not in name}
    )
    assert decoder_of(model).weight is embedding_of(model).weight


@each_architecture
def test_a_new_head_is_drawn_as_hugging_face_draws_it(
    architecture: Architecture, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """A subclass of ours would be initialised otherwise, without a word (ModernBERT by half the deviation, or twice)."""
    wide = {"hidden_size": 128, "intermediate_size": 64}
    config = config_of(architecture, tokenizer, **wide)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    model, _ = loaded(architecture, tmp_path, tokenizer)
    torch.manual_seed(1)
    theirs = architecture.hf_class(config)
    head = {name: tensor for name, tensor in theirs.named_parameters() if name.startswith(architecture.head_names)}
    for name, expected in head.items():
        weight = model.get_parameter(name)
        if expected.ndim == 2:
            # The standard deviation of n values is off by about its (2 n)-th part's root, here on both sides.
            assert abs(weight.std() / expected.std() - 1) <= 7 / (2 * weight.numel()) ** 0.5, name
            assert not torch.equal(weight, expected)
        else:
            assert torch.equal(weight, expected), name
    assert any(expected.ndim == 2 for expected in head.values())


@each_architecture
@pytest.mark.parametrize("auto_class", [AutoModelForSequenceClassification, AutoModelForTokenClassification])
def test_the_head_of_a_classifier_is_left(
    architecture: Architecture, auto_class: Any, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """ModernBERT's has the names of the head for masked tokens, and was trained for something else."""
    torch.manual_seed(5)
    classifier = auto_class.from_config(config_of(architecture, tokenizer))
    classifier.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    model, line = loaded(architecture, tmp_path, tokenizer)
    ignored, fresh = line.split("; ")[-2:]
    assert "classifier" in ignored
    assert all(head.split(".")[0] in fresh for head in architecture.head_names)
    assert_holds(
        model,
        {n: t for n, t in weights.items() if n.startswith(architecture.prefix) and "pooler" not in n},
    )
    for name in weights:
        if name.startswith(architecture.head_names):
            assert name.split(".")[0] in ignored
            if weights[name].ndim == 2:
                assert not torch.equal(model.state_dict()[name], weights[name]), name


@each_architecture
def test_shards_load(architecture: Architecture, tokenizer: Tokenizer, tmp_path: Path) -> None:
    weights = saved(architecture, tokenizer, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    _, theirs = pair(config_of(architecture, tokenizer))
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    model, line = loaded(architecture, tmp_path, tokenizer)
    assert line.endswith("; ignored: nothing; newly initialised: nothing")
    assert_holds(model, weights)


@each_architecture
def test_tied_weights_may_stand_under_each_of_their_names(
    architecture: Architecture, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    weights = saved(architecture, tokenizer, tmp_path)
    ties = dict(architecture.hf_class._tied_weights_keys)
    for name, source in ties.items():
        one, other = (name, source) if source in weights else (source, name)
        swapped = {n: t for n, t in weights.items() if n != other} | {one: weights.get(other, weights.get(one))}
        embedding = "embeddings" in source
        save_file(
            {n: t.clone() for n, t in (weights | swapped if embedding else swapped).items()},
            tmp_path / "model.safetensors",
        )
        model, line = loaded(architecture, tmp_path, tokenizer)
        assert line.endswith("; ignored: nothing; newly initialised: nothing")
        assert_holds(model, weights)
    both = {name: weights.get(name, weights.get(source)).clone() for name, source in ties.items()}
    save_file(weights | both, tmp_path / "model.safetensors")
    assert_holds(loaded(architecture, tmp_path, tokenizer)[0], weights)


@each_architecture
@pytest.mark.parametrize("spare", [1, 112])
def test_a_vocabulary_with_spare_rows_is_hugging_faces(
    architecture: Architecture, spare: int, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Its spare rows are in the softmax and are never targets, from a checkpoint as in a new model."""
    rows = tokenizer.vocab_size + spare
    for config in (
        config_of(architecture, tokenizer, vocab_multiple=rows),
        config_of(architecture, tokenizer),
    ):
        config.vocab_size = rows
        ours, theirs = pair(config)
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        theirs.save_pretrained(tmp_path / "model")
        model, line = loaded(architecture, tmp_path / "model", tokenizer)
        assert f"{spare} of its {rows:,} rows are beyond the tokenizer's {tokenizer.vocab_size:,} ids" in line
        assert_is_hugging_faces(model.eval(), theirs, [[32], [7, 25], [12]], tokenizer)
        assert decoder_of(model).weight.grad[-1].abs().max() > 0  # pushed down, as in Hugging Face
    save_definition(ours, tokenizer, tmp_path / "run")
    again = build_defined(tmp_path / "run")
    again.load_state_dict(ours.state_dict())
    assert again.config.vocab_size == rows
