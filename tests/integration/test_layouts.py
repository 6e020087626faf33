"""One loss and one gradient, however the global batch falls into ranks and micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import final_weights, lines, losses

STEPS = 3


@pytest.fixture
def settings(run_config: dict) -> dict:
    """Three steps of 12 rows without dropout and without clipping, so that gradients reach the weights as they are."""
    return {
        **run_config,
        "model": {**run_config["model"], "hidden_dropout_prob": 0.0},
        "optimizer": {"lr": 1e-3, "gradient_clipping": 0.0},
        "phases": [{"steps": STEPS, "seq_len": 32, "global_batch_rows": 12, "micro_batch_rows": 12}],
    }


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_loss_gradient_and_weights_do_not_depend_on_the_layout(
    stage: int, settings: dict, write_config: Callable[..., Path], run_ranks: Callable[..., str], tmp_path: Path
) -> None:
    """12 rows in 4 lanes as (ranks, accumulation) (1, 4), (2, 2), (4, 1), and on 3 ranks, of which one has two lanes and the
    others fill their second micro-batch with rows of weight 0; against one rank with one big batch at stage 0."""

    def train(name: str, ranks: int, micro_batch_rows: int, zero_stage: int) -> Path:
        phase = {**settings["phases"][0], "micro_batch_rows": micro_batch_rows}
        data = {**settings["data"], "lanes": 4}
        tree = {**settings, "run_dir": str(tmp_path / name), "phases": [phase], "data": data}
        output = run_ranks(write_config({**tree, "engine": {"zero_stage": zero_stage}}), ranks)
        assert f"in {accumulation[name]} micro-batch(es)" in output
        assert ("are filling" in output) == (ranks == 3)
        return tmp_path / name

    accumulation = {"reference": 1, "1 rank": 4, "2 ranks": 2, "4 ranks": 1, "3 ranks": 2}
    reference = train("reference", 1, 12, 0)
    layouts = {"1 rank": (1, 3), "2 ranks": (2, 3), "4 ranks": (4, 3), "3 ranks": (3, 3)}
    for name, (ranks, rows) in layouts.items():
        run = train(name, ranks, rows, stage)
        for one, other in zip(lines(reference), lines(run), strict=True):
            assert other["loss"] == pytest.approx(one["loss"], abs=2e-6), name
            assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4), name
            assert other["tokens_seen"] == one["tokens_seen"], name
        expected = final_weights(reference)
        for weight_name, weight in final_weights(run).items():
            # Adam divides by the gradient's size: where that is rounding noise (key.bias), so is the step.
            if "key.bias" not in weight_name:
                assert (weight - expected[weight_name]).abs().max() < 1e-4, f"{name}: {weight_name}"


@pytest.mark.parametrize(("precision", "stage"), [("bf16", 1), ("bf16", 2), ("bf16", 3), ("fp16", 1), ("fp16", 2)])
def test_half_precision_follows_full(
    precision: str,
    stage: int,
    settings: dict,
    write_config: Callable[..., Path],
    run_ranks: Callable[..., str],
    tmp_path: Path,
) -> None:
    """Half precision with fp32 accumulation stays within its own rounding (2^-8 for bf16) of fp32."""
    phase = {**settings["phases"][0], "micro_batch_rows": 3, "steps": 8}
    optimizer = {"lr": 1e-3}
    tree = {**settings, "phases": [phase], "optimizer": optimizer}
    run_ranks(write_config({**tree, "run_dir": str(tmp_path / "fp32"), "engine": {"precision": "fp32"}}))
    engine = {"precision": precision, "zero_stage": stage}
    deepspeed = {"fp16": {"initial_scale_power": 8}} if precision == "fp16" else {}
    half = {**tree, "run_dir": str(tmp_path / "half"), "engine": engine, "deepspeed": deepspeed}
    run_ranks(write_config(half), 2, fake_fp16=precision == "fp16")
    expected = losses(tmp_path / "fp32")
    for step, loss in losses(tmp_path / "half").items():
        assert loss == pytest.approx(expected[step], rel=2**-8), f"step {step}"
    if precision == "fp16":
        assert lines(tmp_path / "half")[-1]["loss_scale"] == 256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engine": {"precision": "bf16", "zero_stage": 0}}, "set engine.zero_stage=1"),
        (
            {"engine": {"precision": "bf16", "zero_stage": 1, "overlap": True}},
            "engine.overlap cannot be had at zero_stage 1 in bf16 with accumulation",
        ),
        ({"engine": {"reduce_precision": "fp16"}}, "engine.reduce_precision fp16 with precision fp32"),
        ({"deepspeed": {"communication_data_type": "bf16"}}, "maskloom derives: communication_data_type"),
        ({"deepspeed": {"bf16": {"enabled": True}}}, "the deepspeed: block sets what maskloom derives: bf16"),
        (
            {"deepspeed": {"zero_optimization": {"stage": 2}, "train_batch_size": 4}},
            "zero_optimization.stage, train_batch_size",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused_before_anything_is_written(
    change: dict, message: str, settings: dict, write_config: Callable[..., Path], run_ranks: Callable[..., str]
) -> None:
    phase = {**settings["phases"][0], "micro_batch_rows": 3}
    output = run_ranks(write_config({**settings, "phases": [phase], **change}), expect=1)
    assert message in output
    assert "Traceback" not in output
    assert not Path(settings["run_dir"]).exists()
