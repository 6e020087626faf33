"""What a program does first: make the standard streams usable, and handle signals that ask it to stop.

Imports take seconds, and a stop may be asked for during them. Nothing has been written by then, so the program ends at once with
the exit code of a stop. Later others handle these signals: the watch of a rank, or the process that starts the ranks (launch/).
Once those are done, the exit code is settled and the signals are ignored. `train/rank/stopping.py` has the whole way of a signal.

This module imports only small modules of the standard library, so it is ready early.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
"""What schedulers, launchers and terminals send; a terminal sends SIGHUP when it closes. SIGUSR1 is not among them, since NCCL
and launchers use it."""


ERASE = b""
"""What takes the live line off the terminal, while there is one (`live`)."""


def begin() -> None:
    """Handle signals from here on. Call it in the main thread, before torch is imported, in a program that only trains."""
    for number in obeyed():
        signal.signal(number, _end)
    ready()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # maskloom itself says that a rank was lost. torch's warnings about it are stacks of C++; its errors still show.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def obeyed() -> list[signal.Signals]:
    """The signals that stop this process: all of STOP_SIGNALS, but not SIGHUP under nohup."""
    is_ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in STOP_SIGNALS if number != signal.SIGHUP or not is_ignored]


def ready() -> None:
    """Make the standard streams usable, and silence one warning. Every program calls it first."""
    _ready_streams()
    # Python's resource tracker cleans up after a killed process and warns of a leak. Users can do nothing about that.
    chosen = os.environ.get("PYTHONWARNINGS", "")
    if "resource_tracker" not in chosen:
        os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (chosen, "ignore:resource_tracker:UserWarning")))


def _ready_streams() -> None:
    """Open closed standard streams on /dev/null, and write what an output cannot encode as an escape such as `\\u2192`.

    A stream is closed under `>&-` and some daemons. The next file to be opened would then get its number: a library's print
    could end up in a checkpoint. Outputs that cannot encode all characters come with `LC_ALL=C` or `PYTHONIOENCODING=ascii`,
    and file names that are not UTF-8 suit no output.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            os.set_inheritable(opened, True)
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def put_back(handlers: Mapping[signal.Signals, Any]) -> None:
    """Restore earlier handlers once the run is over. `begin`'s own is replaced by none: the exit code is settled."""
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_IGN if handler is _end else handler)


def _end(number: int, frame: object) -> None:
    name = signal.Signals(number).name
    os.write(2, ERASE + f"maskloom: stopped by {name} before the start; nothing was changed\n".encode())
    os._exit(os.EX_TEMPFAIL)  # equals status.EXIT_STOPPED; importing that would take long
