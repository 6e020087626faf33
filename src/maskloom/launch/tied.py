"""A process that the kernel kills when the one that started it dies, however that happens.

    python -m maskloom.launch.tied PARENT COMMAND ...

The request (PR_SET_PDEATHSIG) belongs to the thread that starts this process, so that is the main thread. It stays over exec, but
not over fork. A parent that died before the request was made is noticed by its number. A program of its own rather than code
between fork and exec, which is not safe in a process that has threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def tied(command: list[str]) -> list[str]:
    """The command line that runs `command` for as long as this process lives."""
    return [sys.executable, "-m", "maskloom.launch.tied", str(os.getpid()), *command]


def main(arguments: list[str]) -> None:
    """Become the command, tied to its parent."""
    parent, *command = arguments
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != int(parent):
        sys.exit(128 + signal.SIGKILL)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
