"""One run a folder: a lock that ends with its process, and a sign of life for file systems whose locks say nothing.

Some file systems of clusters have no locks; on others a lock holds on one machine only. So the lock file names its holder, and
the holder touches it every few seconds. A process that finds another machine's name in it looks whether the touching continues;
times are compared on the file server's clock alone. A file server may keep the lock of a machine that is gone: that machine is
silent, and the start waits for the lock. A run that ended in order leaves an empty file, and nobody waits.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from maskloom.errors import UserError
from maskloom.files import LOCK, NO_LOCKS, open_own, open_plain
from maskloom.progress import say
from maskloom.redaction import redacted

TOUCH_S = 5.0
SILENT_S = 4 * TOUCH_S
"""A holder that did not touch its file for so long is gone."""
KEPT_S = 120.0
"""Longest wait for a lock that a file server keeps for a machine that is gone."""
MOMENT_S = 1.0
"""Who only looks holds a lock for less."""
POLL_S = 0.05
MOST_BYTES = 4096
LINES = re.compile(
    r"process ([1-9][0-9]{0,9}) on ([!-~]{1,255})(?=\n|\Z)"
    r"(?:\nsince ([ -~]{1,40}))?(?:\ncommand (.{1,2000}))?(?:\nstart ([!-~]{1,80}))?"
)
"""Of a lock file, as `Holder.as_text` writes it; earlier versions wrote the first."""
LONGEST_COMMAND = 500


class InUse(UserError):
    """Another process trains in the folder; the same command may succeed when it has ended."""

    can_retry = True


@dataclass(frozen=True)
class Holder:
    """Who holds a run's lock.

    Attributes:
        pid: 0 if the file does not say.
        since: when it took the lock, in words.
        command: that it is.
        start: what `status.START` was in its environment.
    """

    pid: int = 0
    host: str = ""
    since: str = ""
    command: str = ""
    start: str = ""

    def __str__(self) -> str:
        name = f"process {self.pid} on {self.host}" if self.pid else "another process"
        since = f" since {self.since}" if self.since else ""
        return f"{name}{since}" + (f" ({self.command})" if self.command else "")

    def as_text(self) -> str:
        lines = {"since": self.since, "command": self.command, "start": self.start}
        return "\n".join(
            [f"process {self.pid} on {self.host}", *(f"{key} {said}" for key, said in lines.items() if said)]
        )

    @property
    def is_here(self) -> bool:
        return self.host == socket.gethostname()

    @property
    def lives_here(self) -> bool:
        return self.is_here and Path(f"/proc/{self.pid}").exists()


class RunLock:
    """Held from the start on. Raises InUse if another process holds the folder.

    Args:
        start: what `status.START` is in this process's environment.
    """

    def __init__(self, folder: Path, start: str = "") -> None:
        self.path = folder / LOCK
        folder.mkdir(parents=True, exist_ok=True)
        self.file = os.fdopen(open_own(self.path), "r+", encoding="utf-8")
        try:
            self._take(start)
        except BaseException:
            self.file.close()
            raise

    def touch(self) -> None:
        """Show that the holder lives."""
        with contextlib.suppress(OSError):
            os.utime(self.file.fileno())

    def release(self) -> None:
        if not self.file.closed:
            with contextlib.suppress(OSError):
                self.file.truncate(0)
            self.file.close()

    def _take(self, start: str) -> None:
        end_s = time.monotonic() + KEPT_S
        while (locked := _lock(self.file, self.path, fcntl.LOCK_EX)) is None:
            holder = _at_work(self.path, locked)
            if holder is None and time.monotonic() > end_s:
                holder = named_holder(self.path) or Holder()
            if holder is not None:
                raise in_use(self.path.parent, holder)
        if holder := _at_work(self.path, locked):
            raise in_use(self.path.parent, holder)
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        mine = Holder(os.getpid(), socket.gethostname(), since, _command(), start)
        self.file.seek(0)
        self.file.truncate()
        self.file.write(mine.as_text())
        self.file.flush()
        if not locked:  # of two that came at once, the one that wrote last has it
            time.sleep(1.0)
            if (other := named_holder(self.path)) != mine:
                raise in_use(self.path.parent, other or Holder())


def holder_of(folder: Path) -> Holder | None:
    """Who trains in a run's folder, or None. Changes nothing. May take SILENT_S, if only the touching of the lock file tells
    whether its holder lives."""
    path = folder / LOCK
    try:
        with open(path, "rb", opener=open_plain) as file:
            if locked := _lock(file, path, fcntl.LOCK_SH):  # shared: two that look do not find each other
                fcntl.flock(file, fcntl.LOCK_UN)
            return _at_work(path, locked)
    except (FileNotFoundError, NotADirectoryError):
        return None


def refuse_in_use(folder: Path) -> None:
    """Raises InUse if somebody trains in the folder."""
    if holder := holder_of(folder):
        raise in_use(folder, holder)


def in_use(folder: Path, holder: Holder) -> InUse:
    stop = shlex.quote(str(folder / "stop"))
    return InUse(
        f"run_dir {folder} is in use by {holder}: wait until that has ended, ask it to stop with `touch {stop}`, or choose "
        "another run_dir"
    )


def named_holder(path: Path) -> Holder | None:
    """Whom a lock file names, be it gone or not."""
    try:
        with open(path, "rb", opener=open_plain) as file:
            text = file.read(MOST_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return None
    match = LINES.match(text.strip())
    if not match:
        return None
    pid, host, since, command, start = (said or "" for said in match.groups())
    return Holder(int(pid), host, since, command if command.isprintable() else "", start)


def _lock(file: IO[str] | IO[bytes], path: Path, how: int) -> bool | None:
    """Lock a file: True if it is locked, False if its file system has no locks, None if somebody else holds it."""
    end_s = time.monotonic() + MOMENT_S
    while True:
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            holder = named_holder(path)
            if (holder is not None and holder.lives_here) or time.monotonic() > end_s:
                return None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return False
        time.sleep(POLL_S)


def _at_work(path: Path, locked: bool | None) -> Holder | None:
    """The one that holds the folder, given what `_lock` said of its file."""
    holder = named_holder(path)
    if holder is not None and not holder.is_here:
        return holder if _is_touched(path, holder) else None
    if locked is None:
        return holder or Holder()
    return holder if locked is False and holder is not None and holder.lives_here else None


def _is_touched(path: Path, holder: Holder) -> bool:
    """Whether another machine's holder gives a sign of life."""
    touched = path.stat().st_mtime
    with contextlib.suppress(OSError), tempfile.NamedTemporaryFile(dir=path.parent, prefix=".clock-") as clock:
        if os.fstat(clock.fileno()).st_mtime - touched > SILENT_S:
            return False
    say(f"{path.parent} was in use by {holder}: waiting up to {SILENT_S:g} s for a sign of life")
    end_s = time.monotonic() + SILENT_S
    while time.monotonic() < end_s:
        time.sleep(1.0)
        if path.stat().st_mtime != touched:
            return True
    return False


def _command() -> str:
    command = redacted(shlex.join(sys.orig_argv))
    if len(command) > LONGEST_COMMAND:
        command = f"{command[:LONGEST_COMMAND]} ..."
    return command if command.isprintable() else repr(command)[1:-1]
