"""The run's folder: whose it is, whether it can be written, its room, and who holds its lock."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from pathlib import Path

from maskloom.files import LOCK, NO_LOCKS
from maskloom.launch.doctor.facts import Request, RunFolder


def look_at_folder(request: Request) -> RunFolder:
    """The run's folder: whether it is the asking machine's, and whether a file can be written there."""
    folder = nearest(Path(request.run_dir))
    sees = None
    if request.token_file:
        try:
            sees = Path(request.token_file).read_text() == request.token
        except OSError:
            sees = False
    fault = None
    own = folder / f".doctor-{request.token[:16] or os.getpid()}-{request.number}"
    try:
        own.write_text(request.token)
        if own.read_text() != request.token:
            fault = f"{own} does not hold what was written to it"
    except OSError as error:
        fault = str(error)
    with contextlib.suppress(OSError):
        own.unlink()
    try:
        room = os.statvfs(folder)
    except OSError as error:
        return RunFolder(str(folder), sees, fault or str(error))
    inodes = room.f_favail if room.f_files else None  # file systems without a fixed number say 0
    return RunFolder(str(folder), sees, fault, room.f_bavail * room.f_frsize, inodes)


def nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists (as its absolute path)."""
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def lock_holder(run_dir: Path) -> str | None:
    """Who holds a run's lock, in words; None where nobody does. A holder on another machine, which locks may not reach, is known
    by touching the file: that may take SILENT_S."""
    from maskloom.train.run_lock import SILENT_S

    path = run_dir / LOCK
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), path.open(encoding="utf-8") as lock:
        holder = lock.read().strip()
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two doctors do not find each other
            fcntl.flock(lock, fcntl.LOCK_UN)
        except BlockingIOError:
            return holder or "another process"
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        if not holder or holder.endswith(f" on {socket.gethostname()}"):
            return None
        touched, end_s = path.stat().st_mtime, time.monotonic() + SILENT_S
        while time.monotonic() < end_s:
            if path.stat().st_mtime != touched:
                return holder
            time.sleep(0.5)
    return None
