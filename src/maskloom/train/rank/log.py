"""`RUN/logs/rank-N.log`: what this rank said, why it failed, and the stacks of its threads when it hung or crashed.

Lines that are said before the run's folder is known to be one are kept, and written when the file is opened.
"""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import time
import traceback
from pathlib import Path
from typing import IO

from maskloom.errors import UserError
from maskloom.files import open_plain
from maskloom.progress import add_reader, remove_reader
from maskloom.redaction import sayable


class RankLog:
    """The log of one rank; several attempts follow each other in its file."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.path: Path | None = None
        self._file: IO[str] | None = None
        self._kept: list[str] = []
        add_reader(self.write)

    def open(self, run: Path, title: str) -> None:
        """Begin an attempt's part of the file with `title`; from here on it records crashes of the interpreter too."""
        folder = run / "logs"
        with contextlib.suppress(OSError, UserError):  # a full disk, or a pipe: the run may do without
            folder.mkdir(exist_ok=True)
            self.path = folder / f"rank-{self.rank}.log"
            self._file = open(self.path, "a", encoding="utf-8", opener=open_plain)  # noqa: SIM115 - kept open
            faulthandler.enable(self._file)
            kept, self._kept = self._kept, []
            self.write(f"---- {title}")
            for line in kept:
                self._append(line)

    def write(self, text: str) -> None:
        """Add a line, with the time of day."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {sayable(text)}\n"
        if self._file is None:
            self._kept.append(line)
        else:
            self._append(line)

    def add_traceback(self, error: BaseException) -> None:
        self.write("".join(traceback.format_exception(error)).rstrip())

    def add_stacks(self, why: str) -> None:
        """The stacks of all threads of this process."""
        self.write(f"stacks of all threads: {why}")
        faulthandler.dump_traceback(self._file or sys.stderr)

    def close(self) -> None:
        remove_reader(self.write)
        if self._file is not None:
            faulthandler.disable()
            self._file.close()
            self._file = None

    def _append(self, line: str) -> None:
        assert self._file is not None
        with contextlib.suppress(OSError, ValueError):  # a full disk; a line that is said while the file is closed
            self._file.write(line)
            self._file.flush()
