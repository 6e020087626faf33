"""The DeepSpeed configuration that follows from the run's: what is sent when, and what cannot be had."""

from __future__ import annotations

from typing import Any

import pytest

from maskloom.config import RunConfig
from maskloom.config_file import parse_config
from maskloom.errors import UserError
from maskloom.train.engine import configuration as module
from maskloom.train.engine.configuration import BUCKET_ELEMENTS, RESERVED
from maskloom.train.engine.patches import known_keys


def deepspeed_config(config: RunConfig, micro_batch_rows: int, accumulates: bool, ranks: int = 1) -> dict[str, Any]:
    sections = config.engine, config.optimizer, config.deepspeed
    return module.deepspeed_config(*sections, micro_batch_rows, accumulates, ranks)


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


def test_no_meter_of_throughput_waits_for_the_device_unless_the_run_asks_for_it() -> None:
    assert deepspeed_config(run_with(), 4, False)["timers"] == {"throughput": {"enabled": False}}
    asked = {"timers": {"throughput": {"enabled": True, "synchronized": False}}}
    assert deepspeed_config(run_with(asked), 4, False)["timers"] == asked["timers"]


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


@pytest.mark.parametrize("key", ["offload_optimizer", "offload_param"])
def test_state_that_no_checkpoint_would_hold_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=rf"{key}\.device nvme cannot be had"):
        deepspeed_config(run_with({"zero_optimization": {key: {"device": "nvme", "nvme_path": "/fast"}}}), 4, True)


def test_deepspeed_says_itself_which_keys_it_reads() -> None:
    derived = deepspeed_config(run_with(), 4, False).keys()
    assert known_keys() > derived | {
        "zero_optimization",
        "wandb",
        "flops_profiler",
        "tensorboard",
        "wall_clock_breakdown",
    }
    assert known_keys().isdisjoint({"nebula", "amp_"})
    assert known_keys() >= RESERVED - {"amp", "bfloat16", "torch_autocast", "scheduler"}


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("activation_checkpoint", "'activation_checkpoint' (did you mean 'activation_checkpointing'?)"),
        ("wall_clock_break_down", "'wall_clock_break_down' (did you mean 'wall_clock_breakdown'?)"),
        ("qqq", "'qqq'."),
        ("nebula", "'nebula'"),
    ],
)
def test_keys_that_deepspeed_does_not_know_are_refused(key: str, said: str) -> None:
    with pytest.raises(UserError, match="what DeepSpeed does not know") as error:
        deepspeed_config(run_with({key: {}}), 4, False)
    assert said in str(error.value)


def test_another_name_of_what_is_derived_is_reserved_too() -> None:
    with pytest.raises(UserError, match="maskloom derives: bfloat16"):
        deepspeed_config(run_with({"bfloat16": {"enabled": True}}), 4, False)
