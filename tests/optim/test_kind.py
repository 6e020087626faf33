"""Which parameters decay, and the optimizer's settings."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from transformers import BertConfig

from maskloom.config import Muon, Optimizer
from maskloom.models.masked_lm import MaskedLM, decoder_of, embedding_of, layers_of, new_model
from maskloom.optim import OPTIMIZERS
from maskloom.optim.kind import FromDeepSpeed, Spread, whole_tensors_only
from maskloom.tokenizers.base import Tokenizer
from tests import architectures
from tests.architectures import EACH


def tiny_model() -> MaskedLM:
    return new_model(
        BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    )


def names_in(groups: list[dict[str, Any]], model: MaskedLM) -> list[list[str]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [[names[parameter] for parameter in group["params"]] for group in groups]


@EACH
@pytest.mark.parametrize("name", ["adamw", "lamb", "muon"])
def test_every_parameter_stands_in_one_group_and_biases_and_norms_do_not_decay(
    name: Any, architecture: str, tokenizer: Tokenizer
) -> None:
    model = architectures.tiny_model(architecture, tokenizer)
    groups = OPTIMIZERS[name].groups(model, Optimizer(name=name, weight_decay=0.2, gradient_clipping=0.0))
    in_groups = names_in(groups, model)
    every = [name for name, _ in model.named_parameters()]
    assert sorted(itertools.chain(*in_groups)) == sorted(every)  # the tied decoder once
    assert set(in_groups[-1]) == {name for name in every if name.endswith("bias") or "norm" in name.lower()}
    assert [group["weight_decay"] for group in groups] == [0.2] * (len(groups) - 1) + [0.0]


def test_lamb_adapts_what_decays() -> None:
    groups = OPTIMIZERS["lamb"].groups(tiny_model(), Optimizer(name="lamb", weight_decay=0.0))
    assert [group["adapts"] for group in groups] == [True, False]


def test_muon_moves_the_matrices_of_the_layers_and_nothing_else() -> None:
    model = tiny_model()
    settings = Optimizer(name="muon", lr=1e-3, muon=Muon(lr=0.02, momentum=0.9), gradient_clipping=0.0)
    matrices, decayed, plain = OPTIMIZERS["muon"].groups(model, settings)
    assert [group["use_muon"] for group in (matrices, decayed, plain)] == [True, False, False]
    assert (matrices["rate"], matrices["momentum"], matrices["ns_method"]) == (pytest.approx(20), 0.9, "gram")
    assert (decayed["rate"], decayed["betas"], decayed["eps"]) == (1.0, (0.9, 0.98), 1e-6)
    in_groups = names_in([matrices, decayed], model)
    layer = "bert.encoder.layer.0."
    dense = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
    dense += ["intermediate.dense", "output.dense"]
    assert sorted(in_groups[0]) == sorted(f"{layer}{name}.weight" for name in dense)
    assert "cls.predictions.transform.dense.weight" in in_groups[1]
    assert "bert.embeddings.word_embeddings.weight" in in_groups[1]


@EACH
def test_muon_moves_the_matrices_of_every_architectures_layers(architecture: str, tokenizer: Tokenizer) -> None:
    """BERT's six of each layer, or ModernBERT's four; never the head, nor what is tied to the embeddings."""
    model = architectures.tiny_model(architecture, tokenizer)
    matrices, decayed, _ = OPTIMIZERS["muon"].groups(model, Optimizer(name="muon", gradient_clipping=0.0))
    layers = layers_of(model)
    assert len(matrices["params"]) == len(layers) * (4 if architecture == "modernbert" else 6)
    within = {id(parameter) for layer in layers for parameter in layer.parameters()}
    assert all(id(parameter) in within and parameter.ndim == 2 for parameter in matrices["params"])
    assert {id(embedding_of(model).weight), id(decoder_of(model).weight)} <= {id(each) for each in decayed["params"]}
    assert not within & {id(parameter) for parameter in decayed["params"]}


def test_left_out_settings_of_muon_are_those_of_the_configuration() -> None:
    matrices, *_ = OPTIMIZERS["muon"].groups(tiny_model(), Optimizer(name="muon", gradient_clipping=0.0))
    assert (matrices["rate"], matrices["momentum"]) == (1.0, Muon().momentum)


def built(model: MaskedLM, settings: Optimizer) -> torch.optim.Optimizer:
    kind = OPTIMIZERS[settings.name]
    return kind.build(kind.groups(model, settings), settings, FromDeepSpeed())


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_the_settings_reach_the_optimizer(name: str) -> None:
    settings = Optimizer(name=name, lr=2e-3, beta1=0.8, beta2=0.95, eps=1e-7, weight_decay=0.2)
    for group in built(tiny_model(), settings).param_groups:
        assert (group["lr"], group["betas"], group["eps"], group["rate"]) == (2e-3, (0.8, 0.95), 1e-7, 1.0)


def test_without_a_gradient_only_the_decay_moves_weights() -> None:
    model = tiny_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = built(model, Optimizer(lr=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        kept = 1 - 0.1 * 0.5 if parameter.ndim > 1 else 1.0  # AdamW: decoupled, w <- w (1 - lr * decay)
        torch.testing.assert_close(parameter.detach(), before[name] * kept)


def test_an_update_of_whole_tensors_goes_with_stage_0_alone() -> None:
    assert whole_tensors_only(Spread(0, "bf16", accumulates=False)) is None
    for stage in (1, 2, 3):
        refusal = whole_tensors_only(Spread(stage, "fp32", accumulates=True))
        assert refusal is not None
        assert f"engine.zero_stage {stage} cuts" in refusal
        assert "set engine.zero_stage=0" in refusal
