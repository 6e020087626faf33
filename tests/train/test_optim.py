"""Which parameters decay, and the optimizer's settings."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deepspeed import git_version_info
from transformers import BertConfig

from maskloom.config import Muon, Optimizer
from maskloom.model.bert import MaskedLM
from maskloom.train.engine import building
from maskloom.train.optim import adamw, lamb, parameter_groups


def tiny_model() -> MaskedLM:
    return MaskedLM(
        BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    )


def names_in(groups: list[dict[str, Any]], model: MaskedLM) -> list[list[str]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [[names[parameter] for parameter in group["params"]] for group in groups]


@pytest.mark.parametrize("name", ["adamw", "lamb", "muon"])
def test_every_parameter_stands_in_one_group_and_biases_and_norms_do_not_decay(name: Any) -> None:
    model = tiny_model()
    groups = parameter_groups(model, Optimizer(name=name, weight_decay=0.2, gradient_clipping=0.0))
    in_groups = names_in(groups, model)
    every = [name for name, _ in model.named_parameters()]
    assert sorted(itertools.chain(*in_groups)) == sorted(every)  # the tied decoder once
    assert set(in_groups[-1]) == {name for name in every if name.endswith("bias") or "LayerNorm" in name}
    assert [group["weight_decay"] for group in groups] == [0.2] * (len(groups) - 1) + [0.0]


def test_lamb_adapts_what_decays() -> None:
    groups = parameter_groups(tiny_model(), Optimizer(name="lamb", weight_decay=0.0))
    assert [group["adapts"] for group in groups] == [True, False]


def test_muon_moves_the_matrices_of_the_layers_and_nothing_else() -> None:
    model = tiny_model()
    settings = Optimizer(name="muon", lr=1e-3, muon=Muon(lr=0.02, momentum=0.9), gradient_clipping=0.0)
    matrices, decayed, plain = parameter_groups(model, settings)
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


def test_left_out_settings_of_muon_are_those_of_the_configuration() -> None:
    matrices, *_ = parameter_groups(tiny_model(), Optimizer(name="muon", gradient_clipping=0.0))
    assert (matrices["rate"], matrices["momentum"]) == (1.0, Muon().momentum)


@pytest.mark.parametrize("build", [adamw, lamb])
def test_the_settings_reach_the_optimizer(build: Callable[..., torch.optim.Optimizer]) -> None:
    settings = Optimizer(lr=2e-3, beta1=0.8, beta2=0.95, eps=1e-7, weight_decay=0.2)
    for group in build(tiny_model(), settings).param_groups:
        assert (group["lr"], group["betas"], group["eps"], group["rate"]) == (2e-3, (0.8, 0.95), 1e-7, 1.0)


def test_without_a_gradient_only_the_decay_moves_weights() -> None:
    model = tiny_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = adamw(model, Optimizer(lr=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        kept = 1 - 0.1 * 0.5 if parameter.ndim > 1 else 1.0  # AdamW: decoupled, w <- w (1 - lr * decay)
        torch.testing.assert_close(parameter.detach(), before[name] * kept)


class TestWhichAdam:
    """DeepSpeed's FusedAdam is for CUDA, where it is built already or can be."""

    def test_not_on_a_cpu(self) -> None:
        assert building.why_no_fused_adam() == "it is for CUDA"
        assert isinstance(building.build_optimizer(tiny_model(), Optimizer()), torch.optim.AdamW)

    @pytest.fixture
    def on_cuda(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(building, "get_accelerator", lambda: SimpleNamespace(device_name=lambda: "cuda"))
        monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", None)
        monkeypatch.setattr("torch.version.cuda", "12.8")
        monkeypatch.setattr("torch.utils.cpp_extension.verify_ninja_availability", lambda: None)

    def test_a_build_that_holds_it_will_do(self, on_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(git_version_info.installed_ops, "fused_adam", True)
        assert building.why_no_fused_adam() is None

    def test_without_nvcc_it_says_so(self, on_cuda: None) -> None:
        assert "CUDA_HOME does not exist" in str(building.why_no_fused_adam())

    @pytest.mark.parametrize(("release", "said"), [("12.8", None), ("11.0", "does not match")])
    def test_with_nvcc_it_is_a_matter_of_its_version(
        self, release: str, said: str | None, on_cuda: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "bin").mkdir()
        nvcc = tmp_path / "bin" / "nvcc"
        nvcc.write_text(f"#!/bin/sh\necho Cuda compilation tools, release {release}, V{release}.1\n")
        nvcc.chmod(0o755)
        monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", str(tmp_path))
        why = building.why_no_fused_adam()
        assert why is None if said is None else said in str(why)

    def test_without_ninja_it_says_so(self, on_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing() -> None:
            raise RuntimeError("Ninja is required to load C++ extensions")

        monkeypatch.setattr("deepspeed.ops.op_builder.builder.assert_no_cuda_mismatch", lambda name: True)
        monkeypatch.setattr("torch.utils.cpp_extension.verify_ninja_availability", missing)
        assert "Ninja is required" in str(building.why_no_fused_adam())

    def test_where_it_can_be_had_it_is_taken(self, on_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
        made: list[Any] = []
        loaded: list[str] = []
        monkeypatch.setitem(git_version_info.installed_ops, "fused_adam", True)
        monkeypatch.setattr(building, "load_operator", lambda builder: loaded.append(builder.name))
        monkeypatch.setattr("deepspeed.ops.adam.FusedAdam", lambda *given, **more: made.append(more) or "fused")
        assert building.build_optimizer(tiny_model(), Optimizer(lr=3e-4)) == "fused"
        assert loaded == ["fused_adam"]
        assert made == [{"lr": 3e-4, "betas": (0.9, 0.98), "eps": 1e-6, "adam_w_mode": True}]
