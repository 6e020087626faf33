"""The DeepSpeed configuration that follows from the run's: what is sent when, and what cannot be had."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from maskloom.config import RunConfig
from maskloom.config_file import parse_config
from maskloom.distributed import World
from maskloom.errors import UserError
from maskloom.train.engine import configuration
from maskloom.train.engine.configuration import BUCKET_ELEMENTS, PASSED_ON, RESERVED, deepspeed_config, device_of


class Gpu:
    """An accelerator as far as the configuration looks at it."""

    def device_name(self) -> str:
        return "cuda"

    def is_fp16_supported(self) -> bool:
        return True

    is_bf16_supported = is_fp16_supported

    def device_count(self) -> int:
        return 2


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


class TestMoreRanksThanGpus:
    """Every rank of the machine refuses, also those that would have a GPU: none waits for the others."""

    def test_a_rank_has_the_gpu_of_its_number(self, gpu: None) -> None:
        assert device_of(World(1, 4, local_rank=1, local_size=2)) == torch.device("cuda", 1)
        assert device_of(World(1, 4)) == torch.device("cuda", 0)

    @pytest.mark.parametrize("local_rank", [0, 3])
    def test_both_numbers_and_the_remedy_are_named(
        self, local_rank: int, gpu: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
        said = r"^4 ranks on a machine on which rank 7 sees 2 cuda device\(s\) \(CUDA_VISIBLE_DEVICES=0,1\)"
        with pytest.raises(UserError, match=f"{said}.*--processes 2, slots=2.*--gpus-per-node"):
            device_of(World(7, 8, local_rank, local_size=4))

    def test_a_launcher_that_does_not_say_how_many_ranks_there_are_is_seen_through(
        self, gpu: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        with pytest.raises(UserError, match=r"^3 ranks on a machine on which rank 2 sees 2 cuda device\(s\): each"):
            device_of(World(2, 4, local_rank=2, local_size=1))

    def test_cpus_take_any_number(self) -> None:
        assert device_of(World(7, 8, local_rank=7, local_size=8)) == torch.device("cpu")

    def test_it_is_said_before_the_ranks_meet(self, gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
        from maskloom.train.engine import building

        def reached(*_: Any, **__: Any) -> None:
            raise AssertionError("DeepSpeed was asked")

        monkeypatch.setattr("deepspeed.init_distributed", reached)
        with pytest.raises(UserError, match="4 ranks on a machine"):
            building.start_distributed(World(0, 4, local_rank=0, local_size=4))


class Recording(dict):
    """Settings that remember which keys were asked for."""

    def __init__(self, *settings: Any) -> None:
        super().__init__(*settings)
        self.asked: set[str] = set()

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def keys(self) -> Any:
        return self

    def __copy__(self) -> Recording:
        return self


def test_every_key_that_deepspeed_reads_is_derived_reserved_or_passed_on() -> None:
    from deepspeed.runtime.config import _REMOVED_TOP_LEVEL_CONFIG_KEYS, DeepSpeedConfig

    settings = Recording({"train_micro_batch_size_per_gpu": 1})
    DeepSpeedConfig(settings)
    derived = deepspeed_config(run_with(), 4, False).keys()
    halves = {"bf16", "fp16"}  # reserved or derived, with the precision
    assert settings.asked - _REMOVED_TOP_LEVEL_CONFIG_KEYS.keys() >= PASSED_ON
    assert settings.asked - _REMOVED_TOP_LEVEL_CONFIG_KEYS.keys() - halves - RESERVED - derived == PASSED_ON


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
