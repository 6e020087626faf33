"""Progress of long work: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from types import TracebackType

from tqdm import tqdm

from maskloom.redaction import redacted

SECONDS_BETWEEN_LINES = 5.0


_readers: list[Callable[[str], None]] = []


def add_reader(reader: Callable[[str], None]) -> None:
    """Have `reader` called with every line that is said from now on, such as a log of this process."""
    _readers.append(reader)


def remove_reader(reader: Callable[[str], None]) -> None:
    _readers.remove(reader)


def say(message: str) -> None:
    """Print one line at once, so that it is not lost in a buffer when the process is killed."""
    _tell(redacted(message))


def warn(message: str) -> None:
    """Print one line where it does not mix with a command's output."""
    _tell(f"WARNING: {redacted(message)}", to_stderr=True)


def complain(message: str) -> None:
    """Print what ended the program, beside its output."""
    _tell(redacted(message), to_stderr=True)


def _tell(line: str, to_stderr: bool = False) -> None:
    for reader in _readers:
        reader(line)
    # Nobody reads it any more (`| head`), or the disk of a log is full: that ends no run.
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr if to_stderr else sys.stdout, flush=True)


def flush() -> None:
    """Write what is still held, before a program that trains ends. What cannot be written goes nowhere: the interpreter would try
    again, and change the exit code of a run that is done."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def duration(seconds: float) -> str:
    """`3725.2` -> `1:02:05`, `125` -> `2:05`."""
    minutes, second = divmod(round(max(seconds, 0.0)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


class Progress:
    """Counts work done towards `total` units and shows the rate and the time left.

    Used as a context manager; `advance` is cheap enough to be called for every unit.
    """

    def __init__(self, what: str, total: float, unit: str = "", unit_scale: float = 1.0) -> None:
        self.what, self.total, self.unit, self.unit_scale = what, total, unit, unit_scale
        self.done = 0.0
        self.started_s = self.last_line_s = time.monotonic()
        self.bar = tqdm(total=round(total / unit_scale, 1), desc=what, unit=unit) if sys.stderr.isatty() else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()
        elif kind is None and self.last_line_s != self.started_s:
            self._line()

    def advance(self, amount: float) -> None:
        """Add `amount` units; prints at most one line every five seconds where there is no terminal."""
        self.done += amount
        if self.bar is not None:
            self.bar.update(amount / self.unit_scale)
        elif time.monotonic() - self.last_line_s >= SECONDS_BETWEEN_LINES:
            self._line()

    def _line(self) -> None:
        self.last_line_s = time.monotonic()
        elapsed_s = self.last_line_s - self.started_s
        rate = self.done / elapsed_s if elapsed_s else 0.0
        left = duration((self.total - self.done) / rate) if rate else "?"
        share = f"{min(self.done / self.total, 1.0):.0%}" if self.total else "?"
        amount = f"{self.done / self.unit_scale:,.1f} {self.unit}"
        say(f"{self.what}: {share}, {amount}, {rate / self.unit_scale:,.1f} {self.unit}/s, {left} left")
