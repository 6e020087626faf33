"""What programs do first: they make the standard streams fit for use, and hear requests to stop while they import for seconds.

Nothing has been written by then. So a request ends the program at once, with the exit code of a stop. Then others take over: the
watch of a rank (`train/rank/stopping.py` has the whole way of a signal), or what starts ranks (`launch/ending.py`). After those a
request comes too late, and changes no exit code.

This module imports next to nothing.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
"""What schedulers, launchers and terminals send (SIGHUP when they close). SIGUSR1 means nothing: NCCL and launchers use it."""


def begin() -> None:
    """Called in the main thread of a program that is this run's alone, before torch is imported."""
    for number in obeyed():
        signal.signal(number, _end)
    ready()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # That a rank was lost is said once, by us; torch warns of it with stacks of C++. Its errors are still seen.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def obeyed() -> list[signal.Signals]:
    """The signals that ask this process to stop: all, but for SIGHUP where nohup has it ignored."""
    is_ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in STOP_SIGNALS if number != signal.SIGHUP or not is_ignored]


def ready() -> None:
    """Called first in every program: streams that lead somewhere, and no word about what a killed process leaves."""
    _ready_streams()
    # Python's keeper of semaphores takes away what a killed process leaves, and warns of it as a leak: nobody's concern.
    chosen = os.environ.get("PYTHONWARNINGS", "")
    if "resource_tracker" not in chosen:
        os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (chosen, "ignore:resource_tracker:UserWarning")))


def _ready_streams() -> None:
    """Have standard streams that were closed (`>&-`, some daemons) lead nowhere. The next file that is opened, such as one of a
    checkpoint, would have their numbers, and what a library prints would go into it. Characters that an output cannot encode
    (`LC_ALL=C`, `PYTHONIOENCODING=ascii`, parts of file names that are not UTF-8) are written as `\\u2192`."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            os.set_inheritable(opened, True)
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def put_back(handlers: Mapping[signal.Signals, Any]) -> None:
    """Put back the handlers that were there before the run was led; the run is over, and has its exit code."""
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_IGN if handler is _end else handler)


def _end(number: int, frame: object) -> None:
    name = signal.Signals(number).name
    os.write(2, f"maskloom: stopped by {name} before the start; nothing was changed\n".encode())
    os._exit(os.EX_TEMPFAIL)  # status.EXIT_STOPPED, which takes longer to import
