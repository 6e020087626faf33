"""Whether a host can take ranks: a look of a few seconds before each start. `maskloom doctor` looks closer.

On the host `python -m maskloom.launch.probe` prints an object of JSON: its faults, and a free port.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from maskloom import __version__
from maskloom.launch.hostfile import Host
from maskloom.launch.ports import free_port
from maskloom.launch.ssh import FAILED, Ssh, last_line

TIMEOUT_S = 60.0
AT_ONCE = 64


@dataclass(frozen=True)
class Findings:
    """What a look at a host gave.

    Attributes:
        fault: why it can take no ranks; None where it can.
        port: free on it.
    """

    fault: str | None
    port: int = 0


def healthy(host: Host, ssh: Ssh, run: Path) -> str | None:
    """None where the host can take its ranks, else what is wrong with it."""
    return look_at(host, ssh, run, 0).fault


def look_at_all(hosts: Sequence[Host], ssh: Ssh, run: Path, preferred_port: int) -> list[Findings]:
    """A look at each host, many at once, in their order."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda host: look_at(host, ssh, run, preferred_port), hosts))


def look_at(host: Host, ssh: Ssh, run: Path, preferred_port: int) -> Findings:
    """Ask a host by ssh; `run` is a folder that it must see where this machine does."""
    versions = f"{platform.python_version()} {__version__}"
    arguments = ["--slots", str(host.slots), "--versions", versions, "--port", str(preferred_port)]
    if (run / "config.yaml").exists():
        arguments += ["--sees", str((run / "config.yaml").absolute())]
    answer = ssh.run(host.name, "maskloom.launch.probe", arguments, TIMEOUT_S)
    if answer.returncode == FAILED:
        return Findings(f"not reached by ssh: {last_line(answer.stderr)}")
    try:
        found = json.loads(answer.stdout.splitlines()[-1])
        return Findings("; ".join(found["faults"]) or None, int(found["port"]))
    except (IndexError, ValueError, KeyError, TypeError):
        return Findings(f"{sys.executable} in {Path.cwd()} does not run there: {last_line(answer.stderr)}")


def main(arguments: list[str]) -> None:
    """On the host: print what is found."""
    parser = argparse.ArgumentParser(prog="maskloom.launch.probe")
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--versions", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--sees")
    options = parser.parse_args(arguments)
    faults = []
    if options.versions != (own := f"{platform.python_version()} {__version__}"):
        faults.append(f"Python and maskloom are {own} there, {options.versions} here")
    if options.sees and not Path(options.sees).exists():
        faults.append(f"it does not see {options.sees}: is the shared file system mounted?")
    if fault := _gpu_fault(options.slots):
        faults.append(fault)
    port = 0
    try:
        port = free_port(options.port) if options.port else 0
    except OSError as error:
        faults.append(str(error))
    print(json.dumps({"faults": faults, "port": port}))


def _gpu_fault(slots: int) -> str | None:
    """Whether the driver answers for fewer GPUs than there are to be ranks; nothing where there are none, or no tool to ask."""
    if os.environ.get("DS_ACCELERATOR", "cuda") != "cuda" or not shutil.which("nvidia-smi"):
        return None
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return "nvidia-smi does not answer within 30 s"
    gpus = sum(line.startswith("GPU ") for line in listing.stdout.splitlines())
    if listing.returncode or (0 < gpus < slots):
        return f"{gpus} GPUs answer, {slots} are wanted: {last_line(listing.stderr or listing.stdout)}"
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
