"""`maskloom train`: what it checks before it starts, and the DeepSpeed configuration that it shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Command


@pytest.fixture
def config(run_config: dict, write_config: Callable[[dict], Path]) -> Path:
    return write_config(run_config)


def test_the_deepspeed_configuration_is_shown_and_nothing_written(
    config: Path, run_config: dict, succeeds: Command
) -> None:
    shown = json.loads(succeeds("train", config, "--show-deepspeed", "--processes", 3, "engine.zero_stage=2"))
    # Of 12 rows on 6 lanes a rank has 4: one micro-batch, which may hold 4.
    assert shown["train_micro_batch_size_per_gpu"] == 4
    assert shown["zero_optimization"]["stage"] == 2
    assert shown["gradient_clipping"] == 1.0
    assert not Path(run_config["run_dir"]).exists()


def test_what_is_passed_through_stands_beside_what_is_derived(config: Path, succeeds: Command) -> None:
    given = "deepspeed={zero_optimization: {reduce_bucket_size: 1000}, wall_clock_breakdown: true}"
    shown = json.loads(succeeds("train", config, given, "--show-deepspeed"))
    assert shown["zero_optimization"] == {"stage": 1, "overlap_comm": False, "reduce_bucket_size": 1000}
    assert shown["wall_clock_breakdown"] is True


def test_every_clash_with_what_is_derived_is_named(config: Path, fails: Command) -> None:
    given = "deepspeed={zero_optimization: {stage: 3}, train_batch_size: 8}"
    message = fails("train", config, given, "--show-deepspeed")
    assert "zero_optimization.stage" in message
    assert "train_batch_size" in message


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--processes", "7"], "7 ranks are more than the 6 lanes"),
        (["phases.0.stepz=3"], "did you mean 'steps'?"),
        (["data.train=/nowhere"], "no index at /nowhere"),
        (["tokenizer=/nowhere"], "no tokenizer at /nowhere"),
        (["engine.precision=fp16"], "engine.precision"),
        (["seed"], "'seed' is not key=value"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_bad_input_is_refused_before_anything_is_written(
    arguments: list[str], expected: str, config: Path, run_config: dict, fails: Command
) -> None:
    if "fp16" in arguments[-1]:
        from deepspeed.accelerator import get_accelerator

        if get_accelerator().is_fp16_supported():
            pytest.skip("this device computes in fp16")
    assert expected in fails("train", config, *arguments)
    assert not Path(run_config["run_dir"]).exists()


def test_another_configuration_for_a_run_is_refused(trained_run: Path, fails: Command) -> None:
    message = fails("train", trained_run / "config.yaml", "seed=4", "optimizer.lr=1")
    assert "seed: 3 in the run, 4 now" in message
    assert "optimizer.lr: 0.005 in the run, 1.0 now" in message
