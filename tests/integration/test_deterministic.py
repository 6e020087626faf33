"""`engine.deterministic` on a CPU, where it changes nothing: losses and weights, with and without it, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from tests.architectures import tiny

from .conftest import final_weights, losses, train_in_ranks


@pytest.mark.parametrize(
    ("architecture", "stage"),
    [("bert", 0), ("bert", 2), ("bert", 3), ("roberta", 0), ("modernbert", 2), ("modernbert", 3)],
)
def test_a_run_that_turns_it_on_resumes_with_the_same_bits(
    architecture: str, stage: int, run_config: dict, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    """Half of it without, the rest with it; dropout everywhere, gradients of the embeddings as rows and as matrices."""
    phases = run_config["phases"]

    def config(name: str, steps: int, deterministic: bool) -> Path:
        tree = {
            **run_config,
            "run_dir": str(tmp_path / name),
            "model": tiny(architecture, dropout=0.1),
            "phases": [{**phases[0], "steps": steps}],
            "optimizer": {**run_config.get("optimizer", {}), "final_lr_share": 1.0},  # whatever the steps are
            "engine": {"zero_stage": stage, "deterministic": deterministic},
            "logging": {"every_steps": 1},
        }
        return write_config(tree, f"{name}-{steps}.yaml")

    settings = [config("plain", 8, False), config("turned", 4, False), config("turned", 8, True)]
    log = tmp_path / "log"
    train_in_ranks(settings, 1, log)
    assert len(losses(tmp_path / "plain")) == 8
    assert losses(tmp_path / "turned") == losses(tmp_path / "plain")
    one, other = final_weights(tmp_path / "plain"), final_weights(tmp_path / "turned")
    for name, weight in one.items():
        assert torch.equal(weight, other[name]), name
    resolved = yaml.safe_load((tmp_path / "turned" / "config.yaml").read_text())["engine"]
    assert (resolved["deterministic"], resolved["kernels"]) == (True, "eager")  # of `auto`, on a CPU
    ways = "over rows with a mask, in blocks of a window" if architecture == "modernbert" else "over rows with a mask"
    assert f"attention: SDPA {ways}: the device is a CPU" in log.read_text()
