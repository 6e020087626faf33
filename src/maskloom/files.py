"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from maskloom.errors import UserError


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` with `text`: after a crash the old or the new content stands there, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


PARTIAL = ".partial"
LOCK = ".lock"


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `out` when the block ends well, and is removed otherwise.

    Raises:
        UserError: `out` exists already.
    """
    if out.exists():
        raise UserError(f"{out} exists: choose another folder, or remove it first")
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(out)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=PARTIAL, dir=out.parent))
    try:
        with (partial / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield partial
        (partial / LOCK).unlink()
        for folder, _, files in os.walk(partial):
            for name in files:
                with (Path(folder) / name).open("rb") as file:
                    os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o777 & ~umask)  # mkdtemp's is private
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_abandoned(out: Path) -> None:
    """Remove what attempts to write `out` left when they were killed: nobody holds their locks any more."""
    for folder in out.parent.glob(f".{out.name}.*{PARTIAL}"):
        with contextlib.suppress(OSError), (folder / LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
