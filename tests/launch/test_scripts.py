"""The scripts of launcher/, with small programs in the place of Slurm's tools and of the ranks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from maskloom.status import Status, note_attempt
from maskloom.train.run_lock import RunLock

ROOT = Path(__file__).parents[2]
LAUNCHERS = ROOT / "launcher"
STATUS = Status("stopped", 7, 12, 1, last_good_checkpoint="step-00000007")


def script(name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT / "src"), **variables}
    command = ["bash", str(LAUNCHERS / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=120, check=False)


def test_the_scripts_are_clean() -> None:
    if shutil.which("shellcheck"):
        command = ["shellcheck", "launcher/env.sh", "launcher/deepspeed.sh", "launcher/slurm.sbatch"]
        checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert not checked.returncode, checked.stdout
    for name in ("deepspeed.sh", "slurm.sbatch"):
        assert os.access(LAUNCHERS / name, os.X_OK)
        subprocess.run(["bash", "-n", str(LAUNCHERS / name)], check=True, timeout=60)


def test_a_hostfile_is_asked_for_and_must_exist(tmp_path: Path) -> None:
    without = script("deepspeed.sh", "configs/quickstart.yaml")
    assert without.returncode == 2
    assert "no --hostfile" in without.stderr
    nowhere = script("deepspeed.sh", "--hostfile", str(tmp_path / "hosts"), "configs/quickstart.yaml")
    assert nowhere.returncode == 1
    assert f"no hostfile at {tmp_path / 'hosts'}" in nowhere.stderr


@pytest.fixture
def slurm(tmp_path: Path) -> Path:
    """A folder with a run, and Slurm's tools as programs that note their words in `asked`. `srun` leaves `next.json` as the
    run's status and ends with the number in `code`; `squeue` says what stands in `state`."""
    tools, run = tmp_path / "tools", tmp_path / "run"
    tools.mkdir()
    run.mkdir()
    leaves = f'[ ! -e "{tmp_path}/next.json" ] || mv "{tmp_path}/next.json" "{run}/status.json"'
    programs = {
        "srun": f'{leaves}\nexit "$(cat "{tmp_path}/code")"',
        "squeue": f'cat "{tmp_path}/state"',
        "scontrol": "echo node1",
        "scancel": "true",
    }
    given = "tasks=$SLURM_NTASKS_PER_NODE cpus=$SRUN_CPUS_PER_TASK bound=$SLURM_NTASKS_PER_GPU$SLURM_GPUS_PER_TASK"
    for name, body in programs.items():
        (tools / name).write_text(
            f'#!/bin/sh\necho "{name} $* $MASTER_ADDR:$MASTER_PORT {given}" >> "{tmp_path}/asked"\n{body}\n'
        )
        (tools / name).chmod(0o755)
    (tmp_path / "state").write_text("RUNNING\n")
    return tmp_path


def submit(slurm: Path, config: Path, status: Status | None, code: int, **variables: str) -> tuple[int, str]:
    """Run the script as a job: its exit code, and what it asked of Slurm."""
    if status is not None:
        (slurm / "next.json").write_text(replace(status, start="slurm-4711-0").as_text())
        note_attempt(slurm / "run", {"attempt": 1, "step": 0})
    (slurm / "code").write_text(str(code))
    job = {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NTASKS": "2",
        "SLURM_SUBMIT_DIR": str(ROOT),
    }
    path = f"{slurm / 'tools'}{os.pathsep}{os.environ['PATH']}"
    done = script("slurm.sbatch", str(config), f"run_dir={slurm / 'run'}", PATH=path, **{**job, **variables})
    print(done.stdout, done.stderr)
    return done.returncode, (slurm / "asked").read_text()


@pytest.mark.parametrize(
    ("status", "srun", "code", "is_requeued"),
    [
        (STATUS, 75, 75, True),
        (STATUS, 137, 75, True),  # srun killed the slower tasks of a run that had saved
        (Status("done", 12, 12, 1), 0, 0, False),
        (Status("failed", 7, 12, 1, can_retry=False), 1, 1, False),
        (Status("failed", 7, 12, 1), 1, 1, True),
        (Status("running", 7, 12, 1), 137, 137, True),  # every rank was killed
        (Status("running", 7, 12, 1), 0, 1, True),
        (None, 1, 1, False),  # it never began: most likely a mistake
    ],
)
def test_a_job_returns_to_the_queue_if_another_attempt_may_help(
    slurm: Path, status: Status | None, srun: int, code: int, is_requeued: bool
) -> None:
    ended, asked = submit(slurm, ROOT / "configs/quickstart.yaml", status, srun)
    assert ended == code
    assert ("scontrol requeue 4711" in asked) == is_requeued
    assert "node1:16711" in asked
    assert f"srun --kill-on-bad-exit=1 --wait=60 {sys.executable} -u -m maskloom.train" in asked


def test_a_job_beside_a_live_run_is_not_put_into_the_queue_again(slurm: Path) -> None:
    """The live run writes its status meanwhile: that is not this job's."""
    lock = RunLock(slurm / "run", "another's")
    replace(STATUS, state="running", start="another's").write(slurm / "run")
    srun = slurm / "tools" / "srun"
    newer = replace(STATUS, state="running", step=9, start="another's").as_text()
    (slurm / "newer.json").write_text(newer)
    srun.write_text(srun.read_text().replace("\nexit", f'\ncp "{slurm}/newer.json" "{slurm}/run/status.json"\nexit'))
    code, asked = submit(slurm, ROOT / "configs/quickstart.yaml", None, 1)
    assert code == 1
    assert "scontrol requeue" not in asked
    assert (slurm / "run" / "status.json").read_text() == newer
    lock.release()


GPUS = {"SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "", "SLURM_CPUS_ON_NODE": "16"}
"""Of a job of `--nodes=2 --gpus-per-node=4 --exclusive`, as Slurm 22.05 sets them."""
GIVEN = {"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_TASKS_PER_NODE": "4(x2)"}


@pytest.mark.parametrize(
    ("variables", "tasks_per_node", "cpus_per_task"),
    [
        (GPUS, "4", "4"),
        ({**GPUS, "SLURM_CPUS_PER_TASK": "2"}, "4", "2"),
        ({**GPUS, "SLURM_CPUS_PER_GPU": "3", "SLURM_CPUS_ON_NODE": "12"}, "4", ""),
        ({**GPUS, **GIVEN}, "4", ""),
        ({**GPUS, **GIVEN, "SLURM_CPUS_PER_TASK": "3"}, "4", "3"),
        ({**GPUS, "SLURM_GPUS": "a100:8"}, "4", "4"),
        ({**GPUS, **GIVEN, "SLURM_NTASKS_PER_NODE": "", "SLURM_NTASKS_PER_GPU": "1"}, "", ""),
        ({"SLURM_NTASKS": "", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_ON_NODE": "8"}, "1", "8"),
        ({"SLURM_NTASKS_PER_NODE": "3", "SLURM_TASKS_PER_NODE": "3(x2)"}, "3", ""),
    ],
)
def test_a_job_has_a_task_a_gpu_and_the_cores_of_its_nodes(
    variables: dict[str, str], tasks_per_node: str, cpus_per_task: str, slurm: Path
) -> None:
    code, asked = submit(slurm, ROOT / "configs/quickstart.yaml", Status("done", 12, 12, 1), 0, **variables)
    assert code == 0
    assert f" tasks={tasks_per_node} cpus={cpus_per_task} bound=\n" in asked.partition("srun ")[2]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({**GPUS, "SLURM_CPUS_ON_NODE": "1"}, "1 CPUs for 4 tasks on a node: add --ntasks-per-node=4"),
        ({**GPUS, "SLURM_CPUS_PER_TASK": "5"}, "16 CPUs for 4 tasks on a node"),
        ({**GPUS, **GIVEN, "SLURM_TASKS_PER_NODE": "2(x2)"}, "as with --ntasks-per-node=4"),
        ({**GPUS, **GIVEN, "SLURM_TASKS_PER_NODE": "7,1"}, "4 GPUs on a node, and 7,1 tasks"),
        ({**GPUS, "SLURM_GPUS": "6"}, "6 GPUs on 2 nodes, 4 of them on "),
    ],
)
def test_a_job_with_other_tasks_than_gpus_is_refused(
    variables: dict[str, str], said: str, slurm: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (slurm / "asked").touch()
    code, asked = submit(slurm, ROOT / "configs/quickstart.yaml", None, 0, **variables)
    assert code == 2
    assert "srun" not in asked
    assert said in capfd.readouterr().out


def test_a_cancelled_job_is_not_brought_back_and_a_switch_forbids_it(slurm: Path) -> None:
    (slurm / "state").write_text("COMPLETING\n")
    assert "scontrol requeue" not in submit(slurm, ROOT / "configs/quickstart.yaml", STATUS, 75)[1]
    (slurm / "state").write_text("RUNNING\n")
    (slurm / "run" / "no-restart").touch()
    again = Status("stopped", 8, 12, 2, last_good_checkpoint="step-00000008")
    assert "scontrol requeue" not in submit(slurm, ROOT / "configs/quickstart.yaml", again, 75)[1]


def test_parts_of_an_array_follow_one_another_until_the_run_is_done(slurm: Path) -> None:
    code, asked = submit(slurm, ROOT / "configs/quickstart.yaml", STATUS, 75, SLURM_ARRAY_JOB_ID="4700")
    assert code == 75
    assert "scontrol requeue" not in asked
    assert "scancel" not in asked
    code, asked = submit(
        slurm, ROOT / "configs/quickstart.yaml", Status("done", 12, 12, 2), 0, SLURM_ARRAY_JOB_ID="4700"
    )
    assert code == 0
    assert "scancel --state=PENDING 4700" in asked
