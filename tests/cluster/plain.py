"""What DeepSpeed alone comes to under the same faults.

`python -m tests.cluster.plain` runs plain_training.py on the cluster under each and writes plain.json, from which
docs/fault-table.md has its last column.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .cluster import HEAD, Cluster
from .plain_training import STEPS
from .runs import damage_largest, slow_down

FACTS = Path(__file__).with_name("plain.json")
PROGRAM = Path(__file__).with_name("plain_training.py")
PACE, SLOWEST, STRUCK_AFTER = "8mbit", "1mbit", 7
WAIT_S = 90.0
"""For an end; what runs on then is said to."""
SETTLE_S = 20.0
"""For processes to end when the launcher has."""


class Plain:
    """A run of plain_training.py.

    Attributes:
        folder: where it writes, as this process sees it.
        inside: the same folder as the cluster's machines see it.
    """

    def __init__(self, cluster: Cluster, folder: Path, inside: Path | None = None) -> None:
        self.cluster, self.folder, self.inside = cluster, folder, inside or folder
        self.log = folder / "log"
        self.launcher: subprocess.Popen[str] | None = None

    def start(self, *options: str, program: Sequence[str] = ()) -> None:
        """With options of the launcher, and of the program."""
        launcher = ["deepspeed", "--hostfile", str(self.cluster.hostfile()), *options]
        command = [*launcher, str(PROGRAM), str(self.inside), *program]
        with self.log.open("a") as log:
            self.launcher = self.cluster.start(HEAD, command, stdout=log, stderr=log, start_new_session=True)

    def lines(self) -> list[dict[str, Any]]:
        found = []
        with contextlib.suppress(FileNotFoundError):
            for line in (self.folder / "steps.jsonl").read_text().splitlines():
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
        return found

    def step(self) -> int:
        return max((line["step"] for line in self.lines()), default=0)

    def ranks(self) -> dict[int, int]:
        """Rank -> process id."""
        found = {}
        for process in self.cluster.processes(str(self.inside)):
            is_rank = str(PROGRAM) in process.argv and not {
                "deepspeed.launcher.launch",
                "deepspeed.launcher.runner",
            } & set(process.argv)
            if is_rank and process.machine != HEAD and any(word.startswith("--local_rank") for word in process.argv):
                found[("node1", "node2").index(str(process.machine))] = process.pid
        return found

    def end(self, wait_s: float = WAIT_S) -> int | None:
        assert self.launcher
        try:
            return self.launcher.wait(wait_s)
        except subprocess.TimeoutExpired:
            return None

    def until_step(self, step: int) -> None:
        deadline_s = time.monotonic() + 300
        while self.step() < step:
            assert self.launcher and self.launcher.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline_s, self.log.read_text()[-3000:]
            time.sleep(0.05)


def signal_rank(rank: int, sent: signal.Signals) -> Callable[[Plain], None]:
    return lambda run: os.kill(run.ranks()[rank], sent)


def signal_launcher(sent: signal.Signals) -> Callable[[Plain], None]:
    return lambda run: run.launcher.send_signal(sent) if run.launcher else None


def limit_files(run: Plain) -> None:
    resource.prlimit(run.ranks()[1], resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))


def damage(how: str) -> Callable[[Plain], None]:
    def strike(run: Plain) -> None:
        for pid in run.ranks().values():
            os.kill(pid, signal.SIGKILL)
        run.end()
        folder = run.folder / "checkpoints" / (run.folder / "checkpoints" / "latest").read_text().strip()
        damage_largest(folder, how)

    return strike


STRIKES: dict[str, Callable[[Plain], None]] = {
    "rank killed": signal_rank(1, signal.SIGKILL),
    "node lost": lambda run: run.cluster.link("node2", False),
    "rank hung": signal_rank(1, signal.SIGSTOP),
    "SIGTERM to the launcher": signal_launcher(signal.SIGTERM),
    "SIGUSR2 to the launcher": signal_launcher(signal.SIGUSR2),
    "launcher killed": signal_launcher(signal.SIGKILL),
    "SIGTERM to a rank": signal_rank(1, signal.SIGTERM),
    "disk full": limit_files,
    "checkpoint truncated": damage("truncated"),
    "checkpoint bit-flipped": damage("flipped"),
    "checkpoint missing a file": damage("missing"),
}


def after(run: Plain, strike: Callable[[Plain], None]) -> str:
    """What a run came to, and what starting it again did, in words."""
    run.cluster.bandwidth(PACE)
    run.start()
    run.until_step(STRUCK_AFTER)
    struck_s = time.monotonic()
    strike(run)
    code = run.end()
    took_s = time.monotonic() - struck_s
    reached = run.step()
    said = f"runs on after {WAIT_S:.0f} s" if code is None else f"ends with {code} after {took_s:.0f} s"
    deadline_s = time.monotonic() + SETTLE_S
    while (left := run.ranks()) and time.monotonic() < deadline_s:
        time.sleep(0.2)
    if left and code is not None:
        said += f"; **{len(left)} rank(s) run on**"
    run.cluster.end_runs()
    run.cluster.settle()
    return f"{said}; started again: {again(run, reached)}"


def again(run: Plain, reached: int) -> str:
    run.start()
    code = run.end(240)
    last = [line for line in run.lines() if line["step"] == STEPS]
    run.cluster.end_runs()
    if code is None:
        return "hangs"
    if code or not last:
        words = re.findall(r"\[rank\d\]: (\w*Error.*)$", run.log.read_text(errors="replace"), re.MULTILINE)
        own = [line for line in words if "gloo" not in line]  # not that of a rank whose peer is gone
        return f"ends with {code} ({(own or words)[-1].split('/')[0][:80] if words else 'no error'})"
    first = last[-1]["first"]
    return f"from step {first} of {reached}" if first else "**from the beginning, without a word**"


def port_taken(run: Plain) -> str:
    program = "import socket, time; s = socket.create_server(('', 29500)); print('up', flush=True); time.sleep(3600)"
    taker = run.cluster.start("node1", [sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert taker.stdout and taker.stdout.readline() == "up\n"
    began_s = time.monotonic()
    run.start()
    code = run.end()
    run.cluster.end_runs()
    return (
        f"runs on after {WAIT_S:.0f} s"
        if code is None
        else f"ends with {code} after {time.monotonic() - began_s:.0f} s"
    )


def second_run(run: Plain) -> str:
    """Two runs that save into one folder, at another port."""
    run.cluster.bandwidth(SLOWEST)
    run.start()
    run.until_step(STRUCK_AFTER)
    second = Plain(run.cluster, run.folder)
    second.start("--master_port", "29501")
    codes = [run.end(240), second.end(240)]
    steps = [line["step"] for line in run.lines()]
    twice = len(steps) - len(set(steps))
    return f"both train and write the same files (codes {codes[0]} and {codes[1]}, {twice} steps done twice)"


def wrong_hostfile(run: Plain) -> str:
    command = ["deepspeed", "--hostfile", "/nowhere", str(PROGRAM), str(run.folder)]
    done = run.cluster.run_on(HEAD, command, check=False, timeout_s=240, env={"GLOO_SOCKET_IFNAME": "lo"})
    return f"trains on one machine alone, code {done.returncode}" if run.step() else f"ends with {done.returncode}"


def fill_disk(run: Plain) -> str:
    """Its folder is on a small file system that is full until the run has ended."""
    disk = run.cluster.disk
    struck = Plain(run.cluster, run.cluster.outside(disk / "plain"), disk / "plain")
    struck.log = run.log
    struck.folder.mkdir()
    run.cluster.bandwidth(PACE)
    struck.start()
    struck.until_step(STRUCK_AFTER)
    filler = run.cluster.outside(disk / "filler")
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(1 << 12)):
            pass
    code = struck.end()
    filler.unlink()
    run.cluster.end_runs()
    saved = (struck.folder / "checkpoints" / "latest").read_text().strip() or "**nothing: `latest` is empty**"
    shutil.rmtree(struck.folder)
    said = f"runs on after {WAIT_S:.0f} s" if code is None else f"ends with {code}"
    return f"{said}; its newest checkpoint is {saved}"


def slow_rank(run: Plain) -> str:
    run.cluster.bandwidth(PACE)
    run.start()
    run.until_step(STRUCK_AFTER)
    stuttering = slow_down(run.ranks()[1])
    code = run.end(240)
    stuttering.kill()
    stuttering.wait()
    named = "node2" if any("slow" in line.lower() for line in run.log.read_text().splitlines()) else "nobody"
    return f"ends with {code}; names {named}"


def spoil(run: Plain) -> str:
    run.start(program=["--spoil"])
    code = run.end(240)
    bad = [line["step"] for line in run.lines() if not math.isfinite(line["loss"])]
    if bad:
        return f"ends with {code}; **the loss is NaN from step {min(bad)} to {max(bad)}**"
    said = "and says so" if "overflow" in run.log.read_text().lower() else "without a word"
    return f"ends with {code}; updates that are not finite are left out, {said}; a spike is not noticed"


def killed_build(run: Plain) -> str:
    folder = run.folder / "extensions" / "deepspeed_shm_comm"
    folder.mkdir(parents=True)
    (folder / "lock").touch()
    run.start(program=["--operators"])
    code = run.end()
    run.cluster.end_runs()
    done = f"after {run.step()} steps" if run.step() else "before its first step"
    return f"**waits for ever, {done}**" if code is None else f"ends with {code} {done}"


WHOLE: dict[str, Callable[[Plain], str]] = {
    "port taken": port_taken,
    "second run": second_run,
    "wrong hostfile": wrong_hostfile,
    "disk full for a while": fill_disk,
    "slow rank": slow_rank,
    "steps that go wrong": spoil,
    "lock of a killed build": killed_build,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster.plain", description="DeepSpeed alone, under each fault."
    )
    parser.add_argument("names", nargs="*", help="of faults (default: all)")
    names = parser.parse_args(arguments).names or [*STRIKES, *WHOLE]
    with Cluster.any_free() as cluster:
        for name in names:
            folder = Path(tempfile.mkdtemp(prefix="plain-"))
            run = Plain(cluster, folder)
            cluster.settle()
            fact = WHOLE[name](run) if name in WHOLE else after(run, STRIKES[name])
            print(f"{name}: {fact}", flush=True)
            known = json.loads(FACTS.read_text()) if FACTS.exists() else {}
            FACTS.write_text(json.dumps({**known, name: fact}, indent=1, sort_keys=True) + "\n")
            cluster.end_runs()
            shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
