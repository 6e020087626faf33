"""Each patch of DeepSpeed: what the installed DeepSpeed does without it. A test that fails says that a patch can go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
from deepspeed.runtime.config import DeepSpeedConfig

from maskloom.launch.probe import free_port
from maskloom.train.engine import patches

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def unpatched() -> tuple[dict[str, Any], str]:
    """What DeepSpeed did in a process without anything of ours, and what it printed."""
    rank = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port(27000)),
    }
    environment = {**os.environ, **rank, "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("DS_ACCELERATOR", None)
    command = [sys.executable, Path(__file__).with_name("unpatched.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr


def test_the_patches_are_for_the_version_that_is_installed() -> None:
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (version,) = (line.partition("==")[2] for line in asked if line.startswith("deepspeed=="))
    assert deepspeed.__version__.partition("+")[0] == version
    assert f"DeepSpeed {version}" in (patches.__doc__ or "")


def test_importing_it_warns_that_there_is_no_gpu(unpatched: tuple[dict[str, Any], str]) -> None:
    assert "Setting accelerator to CPU" in unpatched[1]
    quiet = [sys.executable, "-c", "import maskloom.train.engine.engine"]
    done = subprocess.run(quiet, capture_output=True, text=True, check=True)
    assert "accelerator" not in done.stdout + done.stderr


def test_old_pythons_pickle_members_of_enumerations_by_getattr() -> None:
    """Python 3.11.0 to 3.11.3; of later ones the patch changes nothing."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11", "from 3.11.4 on, pickle_stages_as_numbers is not needed"


def test_it_looks_for_operators_that_can_be_compiled_when_ranks_meet(unpatched: tuple[dict[str, Any], str]) -> None:
    assert unpatched[0]["probed"]


def test_its_count_of_what_is_sent_waits_for_the_device(unpatched: tuple[dict[str, Any], str]) -> None:
    assert unpatched[0]["waits of a counted collective"] >= 1


def test_its_muon_has_no_public_name() -> None:
    public = [value for module in (deepspeed, deepspeed.ops, deepspeed.ops.adam) for value in vars(module).values()]
    assert patches.muon_class() not in [value for value in public if isinstance(value, type)]
    assert issubclass(patches.muon_class(), torch.optim.Optimizer)  # type: ignore[arg-type]


def test_at_stage_0_in_half_precision_it_steps_when_it_is_made(unpatched: tuple[dict[str, Any], str]) -> None:
    assert unpatched[0]["decayed when wrapped"]
    assert unpatched[0]["steps when wrapped"] > 0


def test_at_stage_0_one_rank_reduces_with_itself(unpatched: tuple[dict[str, Any], str]) -> None:
    assert unpatched[0]["buckets reduced by one rank"] > 0


def test_at_stage_3_a_step_that_is_dropped_moves_muons_momentum(unpatched: tuple[dict[str, Any], str]) -> None:
    assert not unpatched[0]["takes a step on NaN"]
    assert unpatched[0]["a dropped step moves the momentum"]


def test_it_takes_every_nan_for_a_loss_scale_that_is_too_high(unpatched: tuple[dict[str, Any], str]) -> None:
    assert unpatched[0]["loss scale after NaN"] == 0.5
    assert unpatched[0]["skipped after NaN"] == 1


def test_it_writes_scripts_beside_its_checkpoint_engine(unpatched: tuple[dict[str, Any], str]) -> None:
    assert unpatched[0]["written without the checkpoint engine"] == ["zero_to_fp32.py", "zero_to_torch.py"]


def test_what_is_destroyed_still_holds_the_model(unpatched: tuple[dict[str, Any], str]) -> None:
    assert unpatched[0]["kept by the stack"]
    assert unpatched[0]["the destroyed engine holds"] == ["module", "optimizer"]


def test_it_ignores_keys_that_it_does_not_know() -> None:
    DeepSpeedConfig({"train_micro_batch_size_per_gpu": 1, "zero_optimisation": {"stage": 3}})
    assert "zero_optimisation" not in patches.known_keys()
    assert "zero_optimization" in patches.known_keys()
