"""Ends the ranks on all hosts, and removes their private files, when what supervises them dies: nobody else could.

    python -m maskloom.launch.guardian TOKEN SSH_CONFIG FOLDER HOST ...      (SSH_CONFIG may be empty)

The supervisor holds the other end of standard input. It writes a line when the attempt is over; the end of input without one
means that it was killed. Signals are ignored: they are the supervisor's matter.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from maskloom.launch.hostfile import Host
from maskloom.launch.leftovers import end_leftovers
from maskloom.launch.ssh import Ssh


@contextlib.contextmanager
def guarded(hosts: Sequence[Host], token: str, ssh: Ssh, folder: Path) -> Iterator[None]:
    """While the block runs, the death of this process ends what has the token on the hosts."""
    words = [token, ssh.config or "", str(folder), *(host.name for host in hosts)]
    command = [sys.executable, "-m", "maskloom.launch.guardian", *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as guardian:
        try:
            yield
        finally:
            assert guardian.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                guardian.stdin.write(b"over\n")
                guardian.stdin.close()


def main(arguments: list[str]) -> None:
    """Wait for the supervisor's word, or its end."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    token, config, folder, *names = arguments
    if not sys.stdin.buffer.readline():
        shutil.rmtree(folder, ignore_errors=True)
        end_leftovers([Host(name, 1) for name in names], token, Ssh(config or None), grace_s=0.0)


if __name__ == "__main__":
    main(sys.argv[1:])
