"""Whether a host can take ranks, and at which port they can meet: a look of a few seconds before each attempt.

`maskloom doctor` looks closer. On the host `python -m maskloom.launch.probe` prints a JSON object: its faults, and a free port.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from maskloom import __version__
from maskloom.launch.hostfile import Host
from maskloom.launch.ssh import AT_ONCE, FAILED, Ssh, last_line

TIMEOUT_S = 60.0
FIRST_PORT, PORTS = 12000, 20000
"""Below the ports that Linux gives to outgoing connections (32768 and up), which take any free one."""
PORT_TRIES = 64


@dataclass(frozen=True)
class Fitness:
    """What a look at a host found.

    Attributes:
        fault: why the host can take no ranks; None if it can.
        port: a free one.
    """

    fault: str | None
    port: int = 0


def probe_hosts(hosts: Sequence[Host], ssh: Ssh, run: Path, preferred: int) -> list[Fitness]:
    """Look at all hosts, many at once; the answers are in the order of the hosts."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda host: probe_host(host, ssh, run, preferred), hosts))


def probe_host(host: Host, ssh: Ssh, run: Path, preferred: int) -> Fitness:
    """Ask a host over ssh.

    Args:
        run: a folder that the host must see at the same path as this machine.
        preferred: port to begin the search at.
    """
    versions = f"{platform.python_version()} {__version__}"
    arguments = ["--slots", str(host.slots), "--versions", versions, "--port", str(preferred)]
    if (run / "config.yaml").exists():
        arguments += ["--sees", str((run / "config.yaml").absolute())]
    answer = ssh.run(host.name, "maskloom.launch.probe", arguments, TIMEOUT_S)
    if answer.returncode == FAILED:
        return Fitness(f"not reached by ssh: {last_line(answer.stderr)}")
    try:
        found = json.loads(answer.stdout.splitlines()[-1])
        return Fitness("; ".join(found["faults"]) or None, int(found["port"]))
    except (IndexError, ValueError, KeyError, TypeError):
        return Fitness(f"{sys.executable} in {Path.cwd()} does not run there: {last_line(answer.stderr)}")


def main(arguments: list[str]) -> None:
    """On the host: print what is found."""
    parser = argparse.ArgumentParser(prog="maskloom.launch.probe")
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--versions", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--sees")
    options = parser.parse_args(arguments)
    faults, port = [], 0
    if options.versions != (own := f"{platform.python_version()} {__version__}"):
        faults.append(f"Python and maskloom are {own} there, {options.versions} here")
    if options.sees and not Path(options.sees).exists():
        faults.append(f"it does not see {options.sees}: is the shared file system mounted?")
    if fault := _gpu_fault(options.slots):
        faults.append(fault)
    try:
        port = free_port(options.port)
    except OSError as error:
        faults.append(str(error))
    print(json.dumps({"faults": faults, "port": port}))


def _gpu_fault(slots: int) -> str | None:
    """Whether the driver answers for fewer GPUs than there are slots. No fault on a host without GPUs, or without nvidia-smi."""
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


def preferred_port(run: Path, attempt: int) -> int:
    """A port that follows from the run, so that two runs on one machine do not meet. Each attempt has another one: what is left
    of the last attempt may still hold its port."""
    return FIRST_PORT + zlib.crc32(f"{run.resolve()} {attempt}".encode()) % PORTS


def free_port(preferred: int) -> int:
    """The first free port from `preferred` on, on this machine. Raises OSError if none of the next 64 is free."""
    for port in range(preferred, preferred + PORT_TRIES):
        if is_free(port):
            return port
    raise OSError(errno.EADDRINUSE, f"ports {preferred} to {preferred + PORT_TRIES - 1} are all taken")


def is_free(port: int) -> bool:
    """Whether nobody listens at a port, on any address of this machine."""
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        with contextlib.ExitStack() as stack:
            try:
                probe = stack.enter_context(socket.socket(family))
            except OSError:  # no IPv6 here
                continue
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind((address, port))
                probe.listen(1)
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:  # IPv6 is switched off
                    continue
                return False
    return True


def spare_port() -> int:
    """Any free port."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main(sys.argv[1:])
