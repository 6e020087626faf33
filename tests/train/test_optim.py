"""Which parameters decay, and the optimizer's settings."""

from __future__ import annotations

import torch
from transformers import BertConfig

from maskloom.config import Optimizer
from maskloom.model.bert import MaskedLM
from maskloom.train.optim import build_optimizer, parameter_groups


def tiny_model() -> MaskedLM:
    return MaskedLM(
        BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    )


def test_every_parameter_stands_in_one_group_and_biases_and_norms_do_not_decay() -> None:
    model = tiny_model()
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed, plain = parameter_groups(model, 0.01)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.01, 0.0)
    in_groups = [names[parameter] for group in (decayed, plain) for parameter in group["params"]]
    assert sorted(in_groups) == sorted(names.values())  # the tied decoder once
    expected = {name for name in names.values() if name.endswith("bias") or "LayerNorm" in name}
    assert {names[parameter] for parameter in plain["params"]} == expected


def test_the_settings_reach_the_optimizer() -> None:
    settings = Optimizer(lr=2e-3, beta1=0.8, beta2=0.95, eps=1e-7, weight_decay=0.2)
    optimizer = build_optimizer(tiny_model(), settings)
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (2e-3, (0.8, 0.95), 1e-7)


def test_without_a_gradient_only_the_decay_moves_weights() -> None:
    model = tiny_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, Optimizer(lr=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        kept = 1 - 0.1 * 0.5 if parameter.ndim > 1 else 1.0  # AdamW: decoupled, w <- w (1 - lr * decay)
        torch.testing.assert_close(parameter.detach(), before[name] * kept)
