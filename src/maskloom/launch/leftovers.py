"""Nothing of a run outlives what started it: three small programs see to that.

    python -m maskloom.launch.leftovers tie PARENT COMMAND ...                  becomes COMMAND; dies with PARENT
    python -m maskloom.launch.leftovers guard TOKEN SSH_CONFIG FOLDER HOST ...  waits; ends the run if its supervisor dies
    python -m maskloom.launch.leftovers end TOKEN GRACE_S                       ends the run on this host; prints a count

`tie` is for processes on this machine: the kernel kills them when their starter dies, however that happens. `guard` is for other
hosts, which the kernel does not reach. It runs beside the supervisor and calls `end` on every host.

`end` finds processes by a token in their environment. A token belongs to one supervisor, and what a rank starts inherits it,
reader processes too. DeepSpeed's own way, `pkill -f` for its launcher, ends every run of the same Python on the host.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from maskloom.launch.ending import POLL_S, TERM_GRACE_S
from maskloom.launch.hostfile import Host
from maskloom.launch.ssh import AT_ONCE, Ssh, last_line
from maskloom.progress import warn

MODULE = "maskloom.launch.leftovers"
VARIABLE = "MASKLOOM_SUPERVISOR"
"""Holds the token in the environment of every process of a run on other hosts."""
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
KILL_S = 10.0
CONNECT_S = 30.0


def tied(command: list[str]) -> list[str]:
    """The command line that runs `command` for as long as this process lives. Start it from the main thread.

    The request to the kernel (PR_SET_PDEATHSIG) belongs to the thread that starts the process. It survives exec, but not fork. A
    program makes it, not code between fork and exec: that is unsafe in a process with threads.
    """
    return [sys.executable, "-m", MODULE, "tie", str(os.getpid()), *command]


def tie(parent: int, command: list[str]) -> None:
    """Become the command, tied to the parent. Exits with 137 if the parent died before the request was made."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        sys.exit(128 + signal.SIGKILL)
    os.execvp(command[0], command)


@contextlib.contextmanager
def guarded(hosts: Sequence[Host], token: str, ssh: Ssh, folder: Path) -> Iterator[None]:
    """While the block runs, the death of this process ends what has the token on the hosts, and removes `folder`."""
    words = [token, ssh.config or "", str(folder), *(host.name for host in hosts)]
    command = [sys.executable, "-m", MODULE, "guard", *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as guardian:
        try:
            yield
        finally:
            assert guardian.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                guardian.stdin.write(b"over\n")
                guardian.stdin.close()


def guard(token: str, ssh: Ssh, folder: Path, hosts: Sequence[Host]) -> None:
    """Wait for the supervisor, which holds the other end of stdin; if it is killed, end the run on all hosts.

    A line says that the attempt is over. The end of input without a line says that the supervisor was killed. Signals are
    ignored: they are the supervisor's business.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if not sys.stdin.buffer.readline():
        shutil.rmtree(folder, ignore_errors=True)
        end_leftovers(hosts, token, ssh, grace_s=0.0)


def end_leftovers(hosts: Sequence[Host], token: str, ssh: Ssh, grace_s: float) -> int:
    """End what is left of a run on each host, many at once; returns how many processes there were.

    A host that cannot be asked is named: its ranks end themselves when they have waited too long (`timeouts`).
    """
    timeout_s = grace_s + TERM_GRACE_S + KILL_S + CONNECT_S
    words = ["end", token, str(grace_s)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda host: ssh.run(host.name, MODULE, words, timeout_s), hosts))
    found = 0
    for host, answer in zip(hosts, answers, strict=True):
        if answer.returncode == 0 and re.fullmatch(r"[0-9]{1,9}", answer.stdout.strip()):
            found += int(answer.stdout)
        else:
            warn(f"{host.name}: cannot tell whether anything of the run is left there: {last_line(answer.stderr)}")
    return found


def end_here(token: str, grace_s: float, term_grace_s: float = TERM_GRACE_S) -> int:
    """On this machine: wait `grace_s` for the processes to end, then send SIGTERM, then SIGKILL. Returns how many did not end by
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
    """The processes that are left after at most this many seconds."""
    until_s = time.monotonic() + seconds
    while (left := _processes(token)) and time.monotonic() < until_s:
        time.sleep(POLL_S)
    return left


def _processes(token: str) -> list[int]:
    """Processes whose environment has the token. A zombie has no environment any more."""
    wanted = f"{VARIABLE}={token}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
    return found


def main(arguments: Sequence[str]) -> None:
    """One of the three programs."""
    what, first, *rest = arguments
    if what == "tie":
        tie(int(first), rest)
    elif what == "guard":
        config, folder, *names = rest
        guard(first, Ssh(config or None), Path(folder), [Host(name, 1) for name in names])
    else:
        try:
            print(end_here(first, float(rest[0])))
        except TimeoutError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
