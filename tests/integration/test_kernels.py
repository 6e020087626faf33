"""Every choice of kernels trains as every other, at every ZeRO stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from maskloom.config import MODELS
from maskloom.models.architecture import ARCHITECTURES
from maskloom.models.masked_lm import layers_of, new_model
from maskloom.tokenizers.loading import load_tokenizer

from .conftest import lines, losses, tiny


@pytest.fixture
def settings(run_config: dict) -> dict:
    """Six steps of 12 rows without dropout, on two sequence lengths."""
    phase = {"steps": 3, "seq_len": 32, "global_batch_rows": 12, "micro_batch_rows": 3}
    return {
        **run_config,
        "model": {**run_config["model"], "hidden_dropout_prob": 0.0},
        "phases": [phase, {**phase, "seq_len": 64}],
        "checkpoint": {"every_steps": 0},
    }


@pytest.mark.parametrize(
    ("architecture", "runs"),
    [
        ("bert", [(0, 1), (1, 2), (2, 1), (3, 1)]),
        ("roberta", [(1, 1)]),
        ("modernbert", [(1, 1), (3, 1)]),
    ],
)
def test_compiled_follows_eager(
    architecture: str,
    runs: list[tuple[int, int]],
    settings: dict,
    write_config: Callable[..., Path],
    run_ranks: Callable[..., str],
    tmp_path: Path,
) -> None:
    """Two ranks of two micro-batches each, once over a change of the sequence length; at stage 3 with layers that are
    computed once more in the backward. `runs` are stages and numbers of phases."""

    def train(name: str, phases: int, **engine: object) -> list[dict]:
        tree = {**settings, "run_dir": str(tmp_path / name), "engine": engine, "phases": settings["phases"][:phases]}
        run_ranks(write_config({**tree, "model": tiny(architecture)}), 2)
        return lines(tmp_path / name)

    # The learning rate follows the length of the run: so does the reference.
    eager = {phases: train(f"eager {phases}", phases) for phases in dict.fromkeys(phases for _, phases in runs)}
    for stage, phases in runs:
        engine = {"kernels": "compile", "zero_stage": stage, "activation_checkpointing": stage == 3}
        for one, other in zip(eager[phases], train(f"stage {stage}", phases, **engine), strict=True):
            assert other["loss"] == pytest.approx(one["loss"], abs=2e-6), f"stage {stage}"
            assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4), f"stage {stage}"


@pytest.mark.parametrize(
    ("stage", "kernels"), [(1, "eager"), (3, "eager"), (1, "compile"), (0, "onednn"), (3, "onednn")]
)
def test_activation_checkpointing_changes_nothing(
    stage: int,
    kernels: str,
    settings: dict,
    write_config: Callable[..., Path],
    run_ranks: Callable[..., str],
    tmp_path: Path,
) -> None:
    """With dropout: the layer that is computed once more drops the same elements."""
    tree = {
        **settings,
        "model": {**settings["model"], "hidden_dropout_prob": 0.3},
        "phases": [{**settings["phases"][0], "micro_batch_rows": 6, "steps": 3}],
    }
    for checkpoints in (False, True):
        engine = {"zero_stage": stage, "kernels": kernels, "activation_checkpointing": checkpoints}
        run_ranks(write_config({**tree, "run_dir": str(tmp_path / str(checkpoints)), "engine": engine}))
    expected = losses(tmp_path / "False")
    assert len(set(expected.values())) == 3
    assert losses(tmp_path / "True") == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(
    ("architecture", "stage", "ranks", "path"),
    [
        ("bert", 1, 2, "bert.encoder.layer.1"),
        ("bert", 3, 1, "bert.encoder.layer.1"),
        ("roberta", 1, 1, "roberta.encoder.layer.1"),
        ("modernbert", 1, 2, "model.layers.1"),
        ("modernbert", 3, 1, "model.layers.1"),
    ],
)
def test_a_collapse_of_fp16_names_the_layer(
    architecture: str,
    stage: int,
    ranks: int,
    path: str,
    settings: dict,
    write_config: Callable[..., Path],
    run_ranks: Callable[..., str],
    tmp_path: Path,
) -> None:
    """A second layer whose output fp16 has no numbers for: no loss scale helps. And a loss scale that may not be lowered
    although gradients overflow."""
    section = MODELS[architecture].model_validate(tiny(architecture))
    model = new_model(ARCHITECTURES[architecture].config(section, load_tokenizer(settings["tokenizer"])))
    with torch.no_grad():
        for weight in layers_of(model)[1].parameters():
            weight.mul_(1e5)
    model.save_pretrained(tmp_path / "start")
    tree = {
        **settings,
        "model": {"init": str(tmp_path / "start")},
        "phases": [{**settings["phases"][0], "micro_batch_rows": 12, "steps": 30}],
        "engine": {"precision": "fp16", "zero_stage": stage},
        "deepspeed": {"fp16": {"initial_scale_power": 2, "hysteresis": 1}},
        "logging": {"every_steps": 1000},
    }
    output = run_ranks(write_config(tree), ranks, fake_fp16=True, expect=1)
    # No step is taken, and the beginning is no better: see the guard.
    assert "the run diverged: step 3 was not taken, as its loss is nan" in output
    for rank in range(ranks):
        assert f"rank {rank}: the output of layer 1 ({path})" in output
    too_high = {"initial_scale_power": 30, "min_loss_scale": 2**28, "hysteresis": 1}
    tree |= {"run_dir": str(tmp_path / "scale"), "model": tiny(architecture), "deepspeed": {"fp16": too_high}}
    tree |= {"checkpoint": {"every_steps": 1, "background": False}}
    output = run_ranks(write_config(tree), ranks, fake_fp16=True, expect=1)
    assert "fp16 collapsed at step 3" in output  # after scales of 2^30 and 2^29, the minimum of 2^28
    assert "rank 0: the gradient " in output
    assert f"with from={tmp_path / 'scale'}@2 and engine.precision=bf16 or a lower optimizer.lr" in output
