"""The DeepSpeed configuration that follows from the run's: what is sent when, and what cannot be had."""

from __future__ import annotations

from typing import Any

import pytest

from maskloom.config import RunConfig, parse_config
from maskloom.errors import UserError
from maskloom.train.engine import configuration
from maskloom.train.engine.configuration import BUCKET_ELEMENTS, deepspeed_config


class Gpu:
    """An accelerator as far as the configuration looks at it."""

    def device_name(self) -> str:
        return "cuda"

    def is_fp16_supported(self) -> bool:
        return True

    is_bf16_supported = is_fp16_supported


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuration, "get_accelerator", Gpu)


def run_with(deepspeed: dict[str, Any] | None = None, **chosen: Any) -> RunConfig:
    tree = {"run_dir": "run", "tokenizer": "tok", "data": {"train": "corpus"}, "phases": [{"steps": 5}]}
    return parse_config({**tree, "engine": chosen, "deepspeed": deepspeed or {}}, "here")


def zero_of(config: RunConfig, accumulates: bool = True, ranks: int = 8) -> dict[str, Any]:
    return deepspeed_config(config, 4, accumulates, ranks=ranks)["zero_optimization"]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_several_gpus_overlap_where_the_stage_can(gpu: None, stage: int, precision: str) -> None:
    config = run_with(zero_stage=stage, precision=precision)
    by_bf16_optimizer = stage == 1 and precision == "bf16"
    assert zero_of(config)["overlap_comm"] is not by_bf16_optimizer
    assert zero_of(config, accumulates=False)["overlap_comm"]
    assert not zero_of(config, ranks=1)["overlap_comm"], "one rank sends nothing"
    assert not zero_of(run_with(zero_stage=stage, precision=precision, overlap=False))["overlap_comm"]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_cpu_overlaps_when_it_is_told_to(stage: int) -> None:
    assert not zero_of(run_with(zero_stage=stage))["overlap_comm"]
    assert zero_of(run_with(zero_stage=stage, overlap=True))["overlap_comm"]


def test_buckets_are_small_unless_the_run_says_otherwise() -> None:
    assert zero_of(run_with())["reduce_bucket_size"] == BUCKET_ELEMENTS
    assert zero_of(run_with({"zero_optimization": {"reduce_bucket_size": 7}}))["reduce_bucket_size"] == 7
    assert zero_of(run_with(zero_stage=0)) == {"stage": 0}


def test_reduce_precision_is_deepspeeds_communication_data_type(gpu: None) -> None:
    assert "communication_data_type" not in deepspeed_config(run_with(), 4, True)
    for precision in ("fp32", "bf16", "fp16"):
        config = run_with(precision="fp16", reduce_precision=precision)
        assert deepspeed_config(config, 4, True)["communication_data_type"] == precision


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"precision": "fp16", "zero_stage": 0}, "engine.zero_stage 0 with fp16"),
        ({"precision": "bf16", "zero_stage": 0}, "engine.zero_stage 0 with bf16"),
        ({"precision": "bf16", "zero_stage": 1, "overlap": True}, "engine.overlap cannot be had"),
        ({"precision": "bf16", "reduce_precision": "fp16"}, "engine.reduce_precision fp16 with precision bf16"),
        ({"precision": "fp32", "reduce_precision": "fp16"}, "engine.reduce_precision fp16 with precision fp32"),
    ],
)
def test_what_cannot_be_had_is_refused_with_what_to_set(gpu: None, chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        deepspeed_config(run_with(**chosen), 4, True)
    assert "et engine." in str(caught.value)


@pytest.mark.parametrize("key", ["communication_data_type", "managed_gradient_accumulation"])
def test_what_is_decided_here_may_not_be_passed_through(key: str) -> None:
    with pytest.raises(UserError, match=f"derives: {key}"):
        deepspeed_config(run_with({key: True}), 4, True)
    with pytest.raises(UserError, match=r"derives: zero_optimization\.overlap_comm"):
        deepspeed_config(run_with({"zero_optimization": {"overlap_comm": True}}), 4, True)
