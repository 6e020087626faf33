"""Training runs on the cluster: started as people start them, watched from outside, and hurt."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from .cluster import HEAD, Cluster, ClusterError, Process

PATIENCE_S = 240.0
"""For anything that must happen: this machine may be busy."""
ASK_EVERY_S = 0.5
"""How often Slurm is asked: each question is a process or two."""
MODULE = "maskloom.train"
SPOILED, SLOWED = "tests.cluster.spoiled", "tests.cluster.slowed"
LAUNCHERS = Path(__file__).parents[2] / "launcher"
Command = Callable[[Cluster, Path, Sequence[str]], list[str]]
"""From the cluster, a configuration file and settings to a command line for the head."""


def by_deepspeed(cluster: Cluster, config: Path, overrides: Sequence[str]) -> list[str]:
    hostfile = ["--hostfile", str(cluster.hostfile())]
    return ["deepspeed", *hostfile, "--module", MODULE, str(config), *overrides]


def by_srun(cluster: Cluster, config: Path, overrides: Sequence[str], module: str = MODULE) -> list[str]:
    options = ["--nodes=2", "--ntasks=2", "--kill-on-bad-exit=1"]
    return ["srun", *options, sys.executable, "-u", "-m", module, str(config), *overrides]


def spoiled_by_srun(cluster: Cluster, config: Path, overrides: Sequence[str]) -> list[str]:
    """Its steps go wrong, as spoiled.py says."""
    return by_srun(cluster, config, overrides, SPOILED)


def slowed_by_srun(cluster: Cluster, config: Path, overrides: Sequence[str]) -> list[str]:
    """Its second rank is slow, as slowed.py says."""
    return by_srun(cluster, config, overrides, SLOWED)


def by_script(*options: str) -> Command:
    """launcher/deepspeed.sh, from the head."""

    def command(cluster: Cluster, config: Path, overrides: Sequence[str]) -> list[str]:
        hostfile = ["--hostfile", str(cluster.hostfile())]
        return [str(LAUNCHERS / "deepspeed.sh"), *hostfile, *options, str(config), *overrides]

    return command


class Run:
    """One run: `start` it, perhaps several times.

    Attributes:
        folder: its run_dir, as this process sees it.
        launcher: what was started last, on the head.
    """

    def __init__(self, cluster: Cluster, tree: Mapping[str, Any], beside: Path | None = None) -> None:
        """Its configuration and its output are in the folder `beside`, by default that of the run."""
        self.cluster, self.tree = cluster, dict(tree)
        self.folder = Path(self.tree["run_dir"])
        beside = beside or self.folder.parent
        self.config = beside / f"{self.folder.name}.yaml"
        self.log = beside / f"{self.folder.name}.log"
        self.config.write_text(yaml.safe_dump(self.tree), encoding="utf-8")
        if self.folder.is_relative_to(cluster.disk):
            self.folder = cluster.outside(self.folder)
        self.launcher: subprocess.Popen[str] | None = None

    def start(
        self,
        command: Command,
        *overrides: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        argv = command(self.cluster, self.config, overrides)
        with self.log.open("a") as log:
            options = {"stdout": log, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
            variables = {"PYTHON": sys.executable, **(environment or {})}
            self.launcher = self.cluster.start(HEAD, argv, start_new_session=True, env=variables, **options)

    def end(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for the launcher's end; its exit code, negative for a signal."""
        assert self.launcher
        try:
            return self.launcher.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ClusterError(
                f"the launcher still runs after {timeout_s:.0f} s:\n{self.output()}\n{self.who()}"
            ) from None

    def is_over(self) -> bool:
        return self.launcher is not None and self.launcher.poll() is not None

    def output(self) -> str:
        return self.log.read_text(errors="replace")[-8000:]

    def said_since(self, length: int) -> str:
        """What was printed since the output had so many characters."""
        return self.log.read_text(errors="replace")[length:]

    # What the run wrote

    def losses(self) -> dict[int, float]:
        """Step -> loss."""
        try:
            text = (self.folder / "metrics.jsonl").read_text()
        except FileNotFoundError:
            return {}
        found = {}
        for line in text.splitlines(keepends=True):
            with contextlib.suppress(ValueError):  # being written
                values = json.loads(line)
                if "loss" in values:
                    found[values["step"]] = values["loss"]
        return found

    def status(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.folder / "status.json").read_text()))
        except FileNotFoundError:
            return {}

    def step(self) -> int:
        """The last step that was logged."""
        return max(self.losses(), default=0)

    def cursors(self) -> list[Any]:
        """Where the newest checkpoint stands in the data: equal cursors at equal steps mean equal batches."""
        return list(json.loads((self.newest() / "data.json").read_text())["cursors"])

    def checkpoints(self) -> list[Path]:
        """Oldest first."""
        return sorted(
            folder for folder in (self.folder / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", folder.name)
        )

    def newest(self) -> Path:
        return self.checkpoints()[-1]

    # Who runs

    def processes(self) -> list[Process]:
        """Everything on the cluster that has to do with this run."""
        return self.cluster.processes(str(self.config))

    def who(self) -> str:
        return "\n".join(f"{each.machine} {each.pid} {' '.join(each.argv)[:200]}" for each in self.processes())

    def rank(self, number: int) -> Process | None:
        """The process of a rank, None where there is none."""
        for process in self.processes():
            if "python" not in Path(process.argv[0]).name or "-m" not in process.argv:
                continue
            if not {MODULE, SPOILED, SLOWED} & set(process.argv):
                continue
            if "deepspeed.launcher.launch" in process.argv:
                continue
            variables = _environment(process.pid)
            if str(number) == variables.get("RANK", variables.get("SLURM_PROCID")):
                return process
        return None

    def kill(self, number: int, sent: signal.Signals) -> None:
        process = self.rank(number)
        assert process, f"no rank {number}:\n{self.who()}\n{self.output()}"
        os.kill(process.pid, sent)

    # Waiting

    def until(
        self,
        what: str,
        is_so: Callable[[], Any],
        timeout_s: float = PATIENCE_S,
        may_end: bool = False,
        every_s: float = 0.05,
    ) -> None:
        """Wait for something; fails where the launcher ends before, unless it may."""
        deadline_s = time.monotonic() + timeout_s
        while not is_so():
            ended = self.launcher.poll() if self.launcher else None
            if ended is not None and not may_end and not is_so():
                raise ClusterError(f"ended with {ended} before {what}:\n{self.output()}")
            if time.monotonic() > deadline_s:
                raise ClusterError(f"not within {timeout_s:.0f} s: {what}\n{self.output()}\n{self.who()}")
            time.sleep(every_s)

    def until_step(self, step: int) -> None:
        self.until(f"step {step}", lambda: self.step() >= step)

    def until_nothing_is_left(self, timeout_s: float = 60) -> None:
        self.until("no process of the run is left", lambda: not self.processes(), timeout_s, may_end=True)


def _environment(pid: int) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(line.partition("=")[::2] for line in lines)


class Job(Run):
    """A run that launcher/slurm.sbatch trains, in one job that is requeued where it must.

    Attributes:
        job: its number.
    """

    job = ""

    def submit(self, *options: str) -> None:
        fixed = ["--parsable", "--nodes=2", "--ntasks-per-node=1", f"--output={self.log}", *options]
        submitted = self.cluster.run_on(
            HEAD, ["sbatch", *fixed, str(LAUNCHERS / "slurm.sbatch"), str(self.config)], env={"PYTHON": sys.executable}
        )
        self.job = submitted.stdout.strip()
        self.log.touch()

    def facts(self) -> dict[str, str]:
        """What Slurm knows of the job."""
        shown = self.cluster.run_on(HEAD, ["scontrol", "show", "job", "--oneliner", self.job]).stdout
        return dict(word.partition("=")[::2] for word in shown.split() if "=" in word)

    def is_over(self) -> bool:
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
        return self.facts()["JobState"] in over

    def end(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait until Slurm has done with the job; the exit code of its script."""
        self.until("the job has ended", self.is_over, timeout_s, every_s=ASK_EVERY_S)
        return int(self.facts()["ExitCode"].split(":")[0])

    def scancel(self, *options: str) -> None:
        self.cluster.run_on(HEAD, ["scancel", *options, self.job])


def damage_largest(folder: Path, how: str) -> None:
    """Take away (`missing`), cut in half (`truncated`) or flip a bit of the largest file of a checkpoint."""
    file = max((each for each in folder.iterdir() if each.is_file()), key=lambda each: each.stat().st_size)
    if how == "missing":
        file.unlink()
    elif how == "truncated":
        os.truncate(file, file.stat().st_size // 2)
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 64
        file.write_bytes(content)


def slow_down(pid: int) -> subprocess.Popen[bytes]:
    """Have a process stand still for most of its time, as long as it lives. It runs for less than a step's computation at a time,
    which begins with the time to run: what it waited for came meanwhile."""
    stutter = f"while kill -STOP {pid}; do sleep 0.05; kill -CONT {pid} || exit; sleep 0.005; done"
    return subprocess.Popen(["sh", "-c", stutter], stderr=subprocess.DEVNULL)
