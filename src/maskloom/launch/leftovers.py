"""What is left of a run on a host: found by a token in its environment, and ended.

DeepSpeed's own way, `pkill -f` for its launcher, ends every run of the same Python there. A token belongs to one supervisor;
what a rank starts inherits it, a reader process too.

On the host `python -m maskloom.launch.leftovers TOKEN GRACE_S` ends them and prints how many there were.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from maskloom.launch.ending import POLL_S, TERM_GRACE_S
from maskloom.launch.hostfile import Host
from maskloom.launch.ssh import Ssh, last_line
from maskloom.progress import warn

VARIABLE = "MASKLOOM_SUPERVISOR"
KILL_S = 10.0
CONNECT_S = 30.0
AT_ONCE = 64


def end_leftovers(hosts: Sequence[Host], token: str, ssh: Ssh, grace_s: float) -> int:
    """End what is left of a run on each host, many at once; returns how many processes there were.

    A host that cannot be asked is named: its ranks end themselves when they wait too long (`timeouts`).
    """
    timeout_s = grace_s + TERM_GRACE_S + KILL_S + CONNECT_S
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(
            pool.map(
                lambda host: ssh.run(host.name, "maskloom.launch.leftovers", [token, str(grace_s)], timeout_s), hosts
            )
        )
    found = 0
    for host, answer in zip(hosts, answers, strict=True):
        if answer.returncode == 0 and re.fullmatch(r"[0-9]{1,9}", answer.stdout.strip()):
            found += int(answer.stdout)
        else:
            warn(f"{host.name}: cannot tell whether anything of the run is left there: {last_line(answer.stderr)}")
    return found


def end_here(token: str, grace_s: float, term_grace_s: float = TERM_GRACE_S) -> int:
    """On this machine: wait `grace_s` for the processes to end, then SIGTERM, then SIGKILL. Returns how many did not end by
    themselves.

    Raises:
        TimeoutError: some live on: they hang in the kernel.
    """
    if not (late := _wait(token, grace_s)):
        return 0
    for number, wait_s in ((signal.SIGTERM, term_grace_s), (signal.SIGKILL, KILL_S)):
        for pid in (left := _processes(token)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if not (left := _wait(token, wait_s)):
            return len(late)
    raise TimeoutError(f"processes {', '.join(map(str, left))} cannot be killed")


def _wait(token: str, seconds: float) -> list[int]:
    """The processes that are left after at most so many seconds."""
    until_s = time.monotonic() + seconds
    while (left := _processes(token)) and time.monotonic() < until_s:
        time.sleep(POLL_S)
    return left


def _processes(token: str) -> list[int]:
    """Those whose environment has the token; a zombie has none any more."""
    wanted = f"{VARIABLE}={token}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
    return found


if __name__ == "__main__":
    try:
        print(end_here(sys.argv[1], float(sys.argv[2])))
    except TimeoutError as error:
        sys.exit(str(error))
