"""How a run stops when it is asked to: from SIGTERM to a checkpoint and exit code 75.

    WHO ASKS                          WHO HEARS IT
    a signal while Python imports     `early.begin`: the process ends at once with 75. Nothing was written yet.
    a signal later                    `Requests`, below: its number goes through a socket to the thread of `Watch` (watch.py).
    the launcher ends, or is killed   the system sends SIGTERM (`end_with_parent`); `Requests.wait` names the cause.
    the file RUN/stop                 the `Watch` of the first rank looks for it every second (`read_stop_file`).
                                        |
                                        v
    `Requests.reason`                 Before the ranks have met, `Watch` ends the rank with 75: there is nothing to save.
                                        |
                                        v
    `Notices.mine["stop"]`            `loop` (loop.py) sets it before each step. `train_step` (step.py) sums the notices of all
                                      ranks in the all-reduce that it needs anyway (notices.py).
                                        |
                                        v
    `StepResult.must_stop`            is the same on all ranks. `loop` saves and returns, `attempt` writes the status `stopped`
                                      and returns 75 (EXIT_STOPPED). The same command resumes the run.

`maskloom train` and the supervisor hear signals too (`launch/ending.py`, `Stop`): they pass them on to the ranks, and wait.

Slurm sends SIGTERM (preemption, time limit, scancel) or what `--signal` asks for. Launchers send SIGTERM or SIGINT. A terminal
sends SIGINT or, when it closes, SIGHUP. They reach every process of a job or only some; all mean the same. A second SIGINT ends
the rank at once. SIGUSR1 means nothing: NCCL and launchers use it.

Why a socket: a handler of Python's runs when the main thread comes back from what it waits in. A collective may wait for half an
hour. Why `end_with_parent`: the ranks of a killed launcher would train on, unknown to anybody.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from maskloom.early import STOP_SIGNALS, obeyed, put_back
from maskloom.processes import end_with_parent

LAUNCHERS_VARIABLES = ("RANK", "SLURM_STEP_ID", "OMPI_COMM_WORLD_RANK")
MOST_TEXT = 2000
"""Characters of a stop file that are read."""
SECOND_INTERRUPT_S = 1.0
"""A SIGINT so soon after another is the same: Ctrl-C comes from the terminal, and once more from the launcher."""


class Requests:
    """Requests to stop that reached this process. Entered in the main thread; the watch thread reads it.

    Attributes:
        reason: the first request in words, or None.
        insists: there was a second SIGINT.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self.reason: str | None = None
        self.insists = False
        self._interrupted_s: float | None = None
        self._launcher = os.getppid() if any(name in environment for name in LAUNCHERS_VARIABLES) else None

    def __enter__(self) -> Requests:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        # Before the handlers: no signal is lost in between.
        self._wakeup = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._before: dict[signal.Signals, Any] = {number: signal.signal(number, _no_more) for number in obeyed()}
        self._before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        if self._launcher is not None:
            end_with_parent(signal.SIGTERM)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._wakeup)
        put_back(self._before)
        self._read.close()
        self._write.close()

    def wait(self, timeout_s: float) -> None:
        """Wait for a signal, and note what came."""
        select.select([self._read], [], [], timeout_s)
        try:
            numbers = self._read.recv(4096)
        except BlockingIOError:
            numbers = b""
        for number in numbers:
            if number in STOP_SIGNALS:
                self._note(signal.Signals(number))
        if self._launcher is not None and os.getppid() != self._launcher:
            self.ask(f"what started it (process {self._launcher}) ended")
            self._launcher = None

    def ask(self, reason: str) -> None:
        """Ask to stop, unless something did before."""
        self.reason = self.reason or reason

    def _note(self, number: signal.Signals) -> None:
        now_s = time.monotonic()
        if self._launcher is not None and number == signal.SIGTERM and os.getppid() != self._launcher:
            return  # the system sent it for the lost launcher, and `wait` says so
        if number == signal.SIGINT:
            if self._interrupted_s is not None and now_s - self._interrupted_s > SECOND_INTERRUPT_S:
                self.insists = True
            self._interrupted_s = self._interrupted_s or now_s
        self.ask(number.name)


def read_stop_file(run: Path) -> str | None:
    """The text of `RUN/stop`, or None if there is no such file."""
    if not (run / "stop").is_file():  # opening a pipe would wait
        return None
    try:
        with (run / "stop").open(encoding="utf-8", errors="replace") as file:
            return file.read(MOST_TEXT).strip() or "no text in it"
    except PermissionError:  # made by somebody else, with a strict umask
        return "its text cannot be read"
    except OSError:
        return None


def _no_more(number: int, frame: object) -> None:
    """Does nothing: the number of the signal went through the socket already."""
