"""examples/add_eurobert.py: a Llama-style encoder from outside of the package is what Hugging Face's is, in every command."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForMaskedLM, EuroBertConfig, EuroBertForMaskedLM

from maskloom import cli
from maskloom.config import MODELS, Bert, Engine
from maskloom.config_file import parse_config
from maskloom.errors import UserError
from maskloom.models.architecture import ARCHITECTURES
from maskloom.models.build import build_model, read_definition
from maskloom.models.description import check_description
from maskloom.models.flops import Shape, training_flops
from maskloom.models.kernels import KERNELS
from maskloom.models.masked_lm import decoder_of, embedding_of, hidden_matrices, new_model, packed
from maskloom.models.outline import parameters_of
from maskloom.models.overflow import find_overflow
from maskloom.tokenizers.base import Tokenizer
from maskloom.train.engine.forward import prepare_forward

from ..fixtures.make import DIED, die_after
from ..integration.conftest import environment, losses, train_in_ranks
from ..models.parity import (
    assert_dropout_acts,
    assert_equal_names,
    assert_is_hugging_faces,
    bucket,
    make_rows,
    pair,
)
from .imports import EXAMPLES, imported, in_a_rank

NAME = "add_eurobert"
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
}
LENGTHS = [[9, 23], [32], [5, 7, 12]]
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "one key": {"num_key_value_heads": 1},
    "as many keys": {"num_key_value_heads": 4},
    "wide heads": {"head_dim": 12},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "tied": {"tie_word_embeddings": True},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
    "gelu": {"hidden_act": "gelu"},
}


@pytest.fixture(scope="module", autouse=True)
def example() -> Iterator[None]:
    with imported(NAME):
        yield


def tiny_config(tokenizer: Tokenizer, **more: Any) -> EuroBertConfig:
    given = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 64, "pad_token_id": tokenizer.pad_id}
    return EuroBertConfig(**{**given, **SHAPE, **more})


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_packed_pieces_are_hugging_faces_one_by_one(name: str, tokenizer: Tokenizer) -> None:
    """Logits, loss and gradients of rows of several pieces; names and shapes of the weights."""
    config = tiny_config(tokenizer, **CONFIGURATIONS[name])
    assert_equal_names(config)
    assert_is_hugging_faces(*pair(config), LENGTHS, tokenizer)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", ["default", "biases"])
def test_kernels_change_nothing(name: str, kernels: str, tokenizer: Tokenizer) -> None:
    ours, theirs = pair(tiny_config(tokenizer, **CONFIGURATIONS[name]))
    ours.kernels = KERNELS[kernels]
    assert_is_hugging_faces(ours, theirs, LENGTHS, tokenizer)


def test_dropout_acts_in_training_alone(tokenizer: Tokenizer) -> None:
    assert_dropout_acts(tiny_config(tokenizer, attention_dropout=0.5), tokenizer)


def test_first_weights_are_drawn_as_hugging_faces(tokenizer: Tokenizer) -> None:
    """The same seed gives the same weights: matrices with their own deviation, norms of 1, biases and padding of 0."""
    config = tiny_config(tokenizer, attention_bias=True, initializer_range=0.05)
    torch.manual_seed(3)
    theirs = dict(EuroBertForMaskedLM(config).named_parameters())
    torch.manual_seed(3)
    ours = new_model(config)
    for name, weight in ours.named_parameters():
        assert torch.equal(weight, theirs[name]), name
        if weight.ndim == 2:
            drawn = weight.detach()[weight.any(1)]
            assert float(drawn.std()) == pytest.approx(0.05, rel=4 / drawn.numel() ** 0.5), name
        else:
            assert (weight == (0 if name.endswith("bias") else 1)).all(), name
    assert not embedding_of(ours).weight[tokenizer.pad_id].any()
    assert decoder_of(ours).weight is not embedding_of(ours).weight


def test_what_is_asked_of_it_elsewhere(tokenizer: Tokenizer) -> None:
    """Muon's matrices, the sparse gradient of tied embeddings, and where numbers overflow."""
    tied, ours = (pair(tiny_config(tokenizer, tie_word_embeddings=ties))[0] for ties in (True, False))
    names = {parameter: name for name, parameter in ours.named_parameters()}
    found = [names[matrix] for matrix in hidden_matrices(ours)]
    assert len(found) == 2 * 7
    assert all(name.startswith("model.layers.") for name in found)
    for model, is_tied in ((tied, True), (ours, False)):
        prepare_forward(model, Engine(zero_stage=1, kernels="eager"))
        assert model.model.embed_tokens.sparse is is_tied
    half = ours.half().train()
    batch = bucket(make_rows([[32]], tokenizer), tokenizer)
    assert find_overflow(half, batch, 1.0) is None
    with torch.no_grad():
        half.get_parameter("model.layers.1.mlp.down_proj.weight")[3] = torch.inf
    assert find_overflow(half, batch, 1.0) == "the output of layer 1 (model.layers.1)"


@pytest.mark.parametrize("more", [{}, {"head_dim": 12}])
def test_its_operations_and_parameters(more: dict[str, int], tokenizer: Tokenizer) -> None:
    """As torch counts those of Hugging Face's class: keys and values are narrower, pairs cost by the queries' heads."""
    config = tiny_config(tokenizer, **more)
    model = EuroBertForMaskedLM(config)
    ids = torch.randint(0, config.vocab_size, (3, 32))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(input_ids=ids, labels=ids).loss.backward()
    assert counter.get_total_flops() == training_flops(Shape.of(config), 3 * 32, [3 * 32**2], 3 * 32)
    assert parameters_of(config) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        ({"head_dim": 5}, "a head has 5 elements"),
        ({"hidden_size": 30}, "hidden_size 30 is not a multiple of num_attention_heads 4"),
    ],
)
def test_heads_that_do_not_fit(given: dict[str, int], fault: str, run_config: dict, tokenizer: Tokenizer) -> None:
    """In a configuration and in a config.json."""
    run_config["model"] = {"architecture": "eurobert", **SHAPE, **given}
    with pytest.raises(UserError, match=fault):
        parse_config(run_config, "run.yaml")
    with pytest.raises(UserError, match=fault):
        check_description({**tiny_config(tokenizer).to_dict(), **given}, "there")


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_parameters has 'rope_type': 'yarn'"),
        ({"rope_parameters": 3}, "rope_parameters is 3, which is not an object"),
        ({"rope_theta": 2e4}, "rope_theta is 20000.0, and rope_parameters.rope_theta is 10000.0"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling is"),
        ({"hidden_act": "odd"}, "hidden_act is 'odd'"),
        ({"num_key_value_heads": None}, "num_key_value_heads is None"),
        ({"mask_token_id": None}, "mask_token_id is None, which is not an id"),
    ],
)
def test_what_is_not_computed_is_refused(given: dict[str, Any], fault: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=fault):
        check_description({**tiny_config(tokenizer).to_dict(), **given}, "there")


def test_the_published_form_of_config_json(tokenizer: Tokenizer) -> None:
    """It has `rope_theta` beside the other keys, as release 4 of transformers had, and keys that nobody reads."""
    tree = {key: value for key, value in tiny_config(tokenizer).to_dict().items() if key != "rope_parameters"}
    tree |= {
        "rope_theta": 250000,
        "rope_scaling": None,
        "hidden_dropout": 0.0,
        "is_causal": False,
        "mask_token": "<|mask|>",
    }
    config = check_description(tree, "there")
    assert ARCHITECTURES["eurobert"].rope_thetas(config) == [250000.0] * 2


@pytest.mark.parametrize("encoder", [False, True])
def test_it_starts_from_a_checkpoint(encoder: bool, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Of the model with its head, or of the encoder alone: then the decoder's own matrix is new."""
    _, theirs = pair(tiny_config(tokenizer, head_dim=12, rope_parameters={"rope_type": "default", "rope_theta": 77.0}))
    (theirs.model if encoder else theirs).save_pretrained(tmp_path)
    model, line = build_model(Bert(init=str(tmp_path)), tokenizer, 0)
    assert model.architecture is ARCHITECTURES["eurobert"]
    assert line.endswith(f"ignored: nothing; newly initialised: {'lm_head.*' if encoder else 'nothing'}")
    for name, tensor in theirs.state_dict().items():
        is_new = encoder and name == "lm_head.weight"
        assert torch.equal(model.state_dict()[name], tensor) is not is_new, name
    assert model.config.rope_parameters["rope_theta"] == 77.0
    assert model.config.mask_token_id == tokenizer.mask_id
    batch = bucket(rows := make_rows([[32]], tokenizer), tokenizer)
    if not encoder:
        logits = theirs(input_ids=torch.from_numpy(rows.input_ids).long()).logits[torch.from_numpy(rows.chosen)]
        torch.testing.assert_close(model.eval().masked_logits(batch)[batch.weights > 0], logits, atol=1e-5, rtol=0)


@pytest.fixture
def tree(run_config: dict) -> dict:
    run_config["model"] = {"architecture": "eurobert", "rope_theta": 500.0, **SHAPE}
    run_config["evaluation"] = {"every_steps": 12, "seq_len": 32}
    return run_config


@pytest.mark.parametrize("stage", [1, 3])
def test_two_ranks_train_it_and_resume_with_the_same_bits(
    stage: int, tree: dict, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    """Killed and resumed; and the losses are those of one rank at stage 0."""
    tree["engine"] = {"zero_stage": stage}
    whole, again = (
        write_config({**tree, "run_dir": str(tmp_path / name)}, f"{name}.yaml") for name in ("whole", "again")
    )
    train_in_ranks([whole], 2, tmp_path / "log", patch=partial(in_a_rank, NAME))
    train_in_ranks([again], 2, tmp_path / "log", expect=DIED, patch=partial(in_a_rank, NAME, partial(die_after, 6)))
    train_in_ranks([again], 2, tmp_path / "log", patch=partial(in_a_rank, NAME))
    assert sorted(losses(tmp_path / "whole")) == list(range(1, 13))
    assert losses(tmp_path / "again") == losses(tmp_path / "whole")

    alone = write_config({**tree, "run_dir": str(tmp_path / "alone"), "engine": {"zero_stage": 0}}, "alone.yaml")
    train_in_ranks([alone], 1, tmp_path / "log", patch=partial(in_a_rank, NAME))
    assert losses(tmp_path / "whole") == pytest.approx(losses(tmp_path / "alone"), abs=1e-4)


def test_a_phase_and_a_start_from_a_checkpoint_set_the_base_of_frequencies(
    run_config: dict, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    run_config["model"] = {"architecture": "eurobert", **SHAPE}
    phase = {**run_config["phases"][0], "steps": 2}
    run_config["phases"] = [phase, {**phase, "rope_theta": 900.0}]
    config = parse_config(run_config, "run.yaml")
    assert [config.model_at(step) for step in (2, 3)] == [{}, {"rope_theta": 900.0}]
    model, _ = build_model(config.model, tokenizer, 0)
    batch = bucket(make_rows([[32]], tokenizer), tokenizer)
    before = model.pieces_by_layer(batch)[0].rotary
    model.architecture.set_fields(model.config, config.model_at(3))
    assert not torch.equal(model.pieces_by_layer(batch)[0].rotary.cos, before.cos)
    model.config.save_pretrained(tmp_path)
    assert ARCHITECTURES["eurobert"].rope_thetas(read_definition(tmp_path)) == [900.0] * 2

    model.save_pretrained(tmp_path)
    begun, _ = build_model(MODELS["eurobert"](init=str(tmp_path), rope_theta=5e3), tokenizer, 0)
    assert begun.config.rope_parameters["rope_theta"] == 5e3


def test_every_command(
    tree: dict,
    write_config: Callable[..., Path],
    maskloom: Callable[..., Any],
    tokenizer: Tokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Trained by `--import`, exported, loaded in transformers, filled and evaluated; then a run begins from the export."""
    tree["phases"] = [{**phase, "steps": 6} for phase in (*tree["phases"], {**tree["phases"][0], "rope_theta": 900.0})]
    config, run = write_config(tree), tmp_path / "run"
    paths = f"{EXAMPLES}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = maskloom("train", "--import", NAME, config, env=environment(PYTHONPATH=paths))
    assert done.returncode == 0, done.stderr
    assert losses(run)[12] < losses(run)[1]

    assert cli.main(["export", str(run), str(tmp_path / "out")]) == 0
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    assert type(theirs) is EuroBertForMaskedLM
    assert theirs.config.rope_parameters["rope_theta"] == 900.0
    assert theirs.config.num_key_value_heads == 2
    assert read_definition(tmp_path / "out").to_dict()["rope_parameters"] == theirs.config.rope_parameters
    ours = packed(EuroBertForMaskedLM.from_pretrained(tmp_path / "out")).eval()
    batch = bucket(rows := make_rows([[32]], tokenizer), tokenizer)
    logits = theirs(input_ids=torch.from_numpy(rows.input_ids).long()).logits[torch.from_numpy(rows.chosen)]
    torch.testing.assert_close(ours.masked_logits(batch)[batch.weights > 0], logits, atol=1e-5, rtol=0)

    capsys.readouterr()
    for model in (run, tmp_path / "out"):
        assert cli.main(["fill", str(model), "a [MASK] ."]) == 0
        assert "[MASK] at token 2" in capsys.readouterr().out
    assert cli.main(["eval", str(run)]) == 0
    assert "held-out loss" in capsys.readouterr().out

    begun = {**tree, "run_dir": str(tmp_path / "begun"), "model": {"init": str(tmp_path / "out")}}
    begun["phases"] = [{**tree["phases"][0], "steps": 2}]
    begun["optimizer"] = {"lr": 1e-3, "warmup_steps": 1}
    begun["evaluation"] = {"every_steps": 0}
    train_in_ranks([write_config(begun, "begun.yaml")], 1, tmp_path / "log", patch=partial(in_a_rank, NAME))
    assert losses(tmp_path / "begun")[1] < losses(run)[1]
