"""The ways to start a run on one machine; each trains the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import free_port, losses

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR")


def environment(**more: str) -> dict[str, str]:
    """Without what an earlier test in this process may have left."""
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    return {**kept, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **more}


def by_deepspeed(config: Path) -> list[subprocess.Popen[str]]:
    launcher = Path(sys.executable).with_name("deepspeed")
    port = str(free_port())
    options = ["--num_accelerators", "2", "--master_port", port, "--module", "maskloom.train"]
    path = f"{launcher.parent}{os.pathsep}{os.environ['PATH']}"
    return [start([str(launcher), *options, str(config), "phases.0.steps=6"], environment(PATH=path))]


def by_torchrun(config: Path) -> list[subprocess.Popen[str]]:
    options = ["--standalone", "--nproc-per-node", "2", "--module", "maskloom.train"]
    return [
        start([sys.executable, "-m", "torch.distributed.run", *options, str(config), "phases.0.steps=6"], environment())
    ]


def by_srun(config: Path) -> list[subprocess.Popen[str]]:
    """Two tasks with the variables that srun gives to a job step of two tasks on one node."""
    variables = {
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    command = [sys.executable, "-m", "maskloom.train", str(config), "phases.0.steps=6"]
    return [
        start(command, environment(**variables, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank))) for rank in range(2)
    ]


def start(command: list[str], variables: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def reference() -> dict[str, dict[int, float]]:
    """The losses of whichever launcher came first."""
    return {}


@pytest.mark.parametrize("launch", [by_deepspeed, by_torchrun, by_srun])
def test_every_launcher_trains_the_same(
    launch: Callable[[Path], list[subprocess.Popen[str]]],
    run_config: dict,
    write_config: Callable[..., Path],
    reference: dict[str, dict[int, float]],
) -> None:
    started = launch(write_config(run_config))
    outputs = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [0] * len(started), "\n".join(outputs)
    assert "2 rank(s) on cpu" in "".join(outputs)
    assert len(losses(run_config["run_dir"])) == 6
    assert losses(run_config["run_dir"]) == reference.setdefault("losses", losses(run_config["run_dir"]))


def test_bad_input_fails_under_a_launcher_too(run_config: dict, write_config: Callable[..., Path]) -> None:
    run_config["data"]["train"] = "/nowhere"
    (process,) = by_deepspeed(write_config(run_config))
    output = process.communicate(timeout=240)[0]
    assert process.returncode != 0
    assert "no index at /nowhere" in output
    assert not Path(run_config["run_dir"]).exists()
