"""Reading and writing files safely: whole or not at all, plain files only, one writer at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from maskloom.errors import UserError
from maskloom.scalars import is_count

PARTIAL = ".partial"
LOCK = ".lock"
WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # reading cannot raise these
NOT_OPENED = (errno.ENXIO, errno.EISDIR)  # for a socket or a pipe without a reader; for a folder
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # some cluster file systems cannot lock


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError if it is not JSON, or is nested too deeply to read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("lists or objects are nested too deeply") from None


def open_plain(path: str | Path, flags: int = os.O_RDONLY) -> int:
    """Open a plain file and return its descriptor; also serves as the `opener` of `open`.

    Anything else is refused: to open or read a named pipe could wait for ever.

    Raises:
        UserError: the path is not a plain file.
        OSError: whatever `os.open` raises.
    """
    try:
        handle = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in NOT_OPENED and os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113
            raise _not_a_file(path, os.stat(path).st_mode) from None  # noqa: PTH116
        raise
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise _not_a_file(path, mode)
    return handle


def read_plain(path: Path) -> bytes:
    """All bytes of a plain file. Raises what `open_plain` raises."""
    with open(path, "rb", opener=open_plain) as file:
        return file.read()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects with a step in a file of JSON lines; a line that a kill cut off is left out."""
    if not path.exists():
        return []
    lines = []
    for line in read_plain(path).decode(errors="replace").split("\n"):
        with contextlib.suppress(ValueError):
            value = parse_json(line)
            if isinstance(value, dict) and is_count(value.get("step")):
                lines.append(value)
    return lines


def _not_a_file(path: str | Path, mode: int) -> UserError:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    what = kinds.get(stat.S_IFMT(mode), "a device")
    return UserError(f"{path} is not a file: it is {what}. Move it away, or name another path")


def write_atomically(path: Path, text: str) -> None:
    """Replace the content of `path` with `text`. After a crash the file holds the old or the new content, never a part."""
    with whole_file(path, path.with_name(f".{path.name}.{os.getpid()}")) as file:
        file.write(text.encode())


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add `path` to errors of writing that name no file, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in WRITE_ERRORS:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from None
        if type(error) is OSError and error.errno is None:  # numpy raises this if it could not write all bytes
            raise OSError(f"{error}: {path}") from None
        raise


@contextlib.contextmanager
def whole_file(path: Path, temporary: Path) -> Iterator[IO[bytes]]:
    """A file to write into. If the block succeeds, it becomes `path`; otherwise it is removed.

    Args:
        temporary: where it is written first. It is on the same file system, and no other process uses it.
    """
    temporary.unlink(missing_ok=True)  # a killed process may have left it, or somebody a link
    try:
        with naming(path), temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk. Flush a file's content first, or its name may outlive it in a crash."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def only_one(lock: Path, busy: str) -> Iterator[bool]:
    """Hold a lock file for the block. Yields False if the file system has no locks.

    Raises:
        UserError: another process holds it; the message is `busy`.
    """
    with open(lock, "a", opener=open_plain) as file:
        locked = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(busy) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            locked = False
        yield locked


def open_own(path: Path) -> int:
    """Open a file of ours to read and write, and return its descriptor. The file is made if it is missing.

    A link is refused, since its target may belong to somebody else.

    Raises:
        UserError: the path is a link, or not a plain file.
    """
    try:
        return open_plain(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"{path} is a link to {path.readlink()}: remove it, and see who laid it there") from None
        raise


def private_folder(folder: Path, remedy: str) -> None:
    """Make a folder that only this user can write into, or check that an existing one is such. Its content is trusted.

    Raises:
        UserError: it belongs to another user, or others may write there. The message ends with `remedy`.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid not in (os.getuid(), 0):
        raise UserError(f"{folder} belongs to user {status.st_uid}, who could put anything there: {remedy}")
    if status.st_mode & 0o002:
        raise UserError(f"every user may write into {folder}: {remedy}")


def refuse_existing(out: Path) -> None:
    """Raises UserError if anything has the name `out`, even a broken link: a folder could not be renamed to it."""
    if os.path.lexists(out):
        what = "is a link that leads nowhere" if not out.exists() else "exists" if out.is_dir() else "is a file"
        raise UserError(f"{out} {what}: the last argument names the folder to write, which must not exist yet")


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to write into. If the block succeeds, it becomes `out`; otherwise it is removed.

    The umask decides who may read it and its files.

    Raises:
        UserError: `out` exists already.
    """
    refuse_existing(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(out)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=PARTIAL, dir=out.parent))
    try:
        with (partial / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with naming(out):
                yield partial
        (partial / LOCK).unlink()
        for folder, _, files in os.walk(partial):
            # mkdtemp makes the folder private. So do libraries that write a temporary file and rename it, as safetensors does.
            Path(folder).chmod(0o777 & ~_umask())
            for name in files:
                with (Path(folder) / name).open("rb") as file:
                    os.fchmod(file.fileno(), 0o666 & ~_umask())
                    os.fsync(file.fileno())
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_abandoned(out: Path) -> None:
    """Remove partial folders of attempts that were killed while they wrote `out`: nobody holds their locks."""
    for folder in out.parent.glob(f".{glob.escape(out.name)}.*{PARTIAL}"):
        if "." in folder.name.removeprefix(f".{out.name}.").removesuffix(PARTIAL):
            continue  # of another folder, whose name has a dot after `out`'s; what `mkdtemp` adds has none
        with contextlib.suppress(OSError, UserError), open(folder / LOCK, "r+", opener=open_plain) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
