"""The run's folder: whose it is, whether it can be written, its room, and who holds its lock."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

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
    """Who holds a run's lock, in words; None where nobody does."""
    from maskloom.train.run_lock import holder_of

    holder = holder_of(run_dir)
    return str(holder) if holder else None
