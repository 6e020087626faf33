"""One run a folder: a lock that ends with its process, and a sign of life for file systems on which locks say nothing.

Locks are unknown on some file systems of clusters, and on others they hold on one machine only. So the lock file names its holder
and is touched every few seconds. Whoever finds another machine's name in it looks whether the touching goes on; times are
compared on the file server's clock alone. A run that ended in order leaves an empty file, and nobody waits.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import tempfile
import time
from pathlib import Path

from maskloom.errors import UserError
from maskloom.files import LOCK, NO_LOCKS, open_own
from maskloom.progress import say

TOUCH_S = 5.0
SILENT_S = 4 * TOUCH_S
"""A holder that did not touch its file for so long is gone."""


class RunLock:
    """Held from the start on. Raises UserError where another process holds the folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        folder.mkdir(parents=True, exist_ok=True)
        self.file = os.fdopen(open_own(self.path), "r+")
        try:
            self._take()
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

    def _take(self) -> None:
        locked = True
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._in_use() from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            locked = False
        if self._holder_lives(locked):
            raise self._in_use()
        mine = f"process {os.getpid()} on {socket.gethostname()}"
        self.file.seek(0)
        self.file.truncate()
        self.file.write(mine)
        self.file.flush()
        if not locked:  # of two that came at once, the one that wrote last has it
            time.sleep(1.0)
            if self._holder() != mine:
                raise self._in_use()

    def _holder_lives(self, locked: bool) -> bool:
        """Whether the one that the file names is at work, given whether this process could lock it."""
        named = re.fullmatch(r"process (\d+) on (.+)", self._holder())
        if not named:
            return False
        if named[2] == socket.gethostname():
            return not locked and Path(f"/proc/{named[1]}").exists()
        touched = self.path.stat().st_mtime
        with tempfile.NamedTemporaryFile(dir=self.path.parent, prefix=".clock-") as clock:
            if os.fstat(clock.fileno()).st_mtime - touched > SILENT_S:
                return False
        say(f"{self.path.parent} was in use by {named[0]}: waiting up to {SILENT_S:g} s for a sign of life")
        end_s = time.monotonic() + SILENT_S
        while time.monotonic() < end_s:
            time.sleep(1.0)
            if self.path.stat().st_mtime != touched:
                return True
        return False

    def _holder(self) -> str:
        return self.path.read_text(encoding="utf-8", errors="replace").strip()

    def _in_use(self) -> UserError:
        return UserError(
            f"run_dir {self.path.parent} is in use by {self._holder() or 'another process'}: wait for it, stop it, or choose "
            "another folder"
        )
