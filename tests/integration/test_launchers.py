"""The ways to start a run on one machine; each trains the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from maskloom.status import attempt_steps, read_status
from tests.waiting import lives, wait_until

from .conftest import environment, free_port, losses


def by_deepspeed(config: Path) -> list[subprocess.Popen[str]]:
    launcher = Path(sys.executable).with_name("deepspeed")
    port = str(free_port())
    options = ["--num_accelerators", "2", "--master_port", port, "--module", "maskloom.train"]
    path = f"{launcher.parent}{os.pathsep}{os.environ['PATH']}"
    return [start([str(launcher), *options, str(config), "phases.0.steps=6"], environment(PATH=path))]


def by_maskloom(config: Path) -> list[subprocess.Popen[str]]:
    return [
        start(
            [sys.executable, "-m", "maskloom.cli", "train", "--processes", "2", str(config), "phases.0.steps=6"],
            environment(),
        )
    ]


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


@pytest.mark.parametrize("launch", [by_maskloom, by_deepspeed, by_torchrun, by_srun])
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


def supervised(config: Path, *options: str) -> subprocess.Popen[str]:
    """`maskloom train` of two ranks, for so many steps that it does not end by itself."""
    command = [
        sys.executable,
        "-u",
        "-m",
        "maskloom.cli",
        "train",
        "--processes",
        "2",
        str(config),
        "phases.0.steps=5000",
    ]
    return start([*command, "checkpoint.every_steps=3", *options], environment())


def ranks_of(launcher: subprocess.Popen[str]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()]


def wait_for_step(run: str, step: int, launcher: subprocess.Popen[str]) -> None:
    until_s = time.monotonic() + 240
    while not (Path(run) / "metrics.jsonl").exists() or max(losses(run), default=0) < step:
        assert launcher.poll() is None, launcher.communicate()[0]
        assert time.monotonic() < until_s
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_stopped_run_says_so_and_its_command_resumes_it(
    number: signal.Signals, run_config: dict, write_config: Callable[..., Path]
) -> None:
    config, run = write_config(run_config), run_config["run_dir"]
    launcher = supervised(config)
    wait_for_step(run, 2, launcher)
    launcher.send_signal(number)
    output = launcher.communicate(timeout=240)[0]
    status = read_status(Path(run))
    assert status is not None
    assert launcher.returncode == 75, output
    assert status.state == "stopped"
    assert output.splitlines()[-1] == (
        f"{run}: stopped at step {status.step} of 5,000. The same command resumes from step-{status.step:08d}"
    )


def test_a_killed_rank_is_restarted_from_the_last_checkpoint(
    run_config: dict, write_config: Callable[..., Path]
) -> None:
    config, run = write_config(run_config), run_config["run_dir"]
    launcher = supervised(config, "--max-restarts", "1")
    wait_for_step(run, 4, launcher)
    while not (Path(run) / "checkpoints" / "latest.json").exists():  # it is written while training goes on
        assert launcher.poll() is None, launcher.communicate()[0]
        time.sleep(0.1)
    os.kill(ranks_of(launcher)[1], signal.SIGKILL)
    while len(attempt_steps(Path(run))) < 2:
        assert launcher.poll() is None, launcher.communicate()[0]
        time.sleep(0.1)
    (Path(run) / "stop").write_text("enough")
    output = launcher.communicate(timeout=240)[0]
    assert launcher.returncode == 75, output
    assert "rank 1 was killed by SIGKILL" in output
    first, second = attempt_steps(Path(run))
    assert first == 0
    assert second >= 3
    assert second % 3 == 0


def test_without_restarts_the_exit_code_and_the_status_tell_of_the_kill(
    run_config: dict, write_config: Callable[..., Path]
) -> None:
    config, run = write_config(run_config), run_config["run_dir"]
    launcher = supervised(config)
    wait_for_step(run, 1, launcher)
    for pid in ranks_of(launcher):
        os.kill(pid, signal.SIGKILL)
    output = launcher.communicate(timeout=240)[0]
    status = read_status(Path(run))
    assert status is not None
    assert launcher.returncode == 137, output
    assert (status.state, status.can_retry) == ("failed", True)
    assert "was killed by SIGKILL" in status.reason
    assert output.splitlines()[-1].startswith(f"{run}: failed at step")


def test_a_killed_launcher_leaves_no_rank(run_config: dict, write_config: Callable[..., Path]) -> None:
    launcher = supervised(write_config(run_config))
    wait_for_step(run_config["run_dir"], 1, launcher)
    pids = ranks_of(launcher)
    assert len(pids) == 2
    launcher.kill()
    launcher.communicate(timeout=240)  # until the last rank has closed its output
    wait_until(lambda: not any(map(lives, pids)), "the ranks to end")
