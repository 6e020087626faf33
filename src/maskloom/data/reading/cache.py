"""A cache of blocks that came over the network, in a folder that all processes of this machine share.

    FOLDER/count               bytes that the folder holds, at most; also the lock of its writers
    FOLDER/ab/cdef...          one block; its name is a hash of the shard's digest and the range, never of the URL
    FOLDER/ab/....partial      a block that is being written, locked by its writer

A writer first reserves its block under the lock: it counts the bytes and gives the temporary file its full size. It writes
without the lock, and renames under it. So the folder never holds more than its bound.

The count can be too high, after a writer was killed or a damaged block was dropped. When it passes the bound, a writer walks
through the folder. That makes the count exact, removes temporaries that nobody locks, and drops the least recently used blocks
until a tenth of the bound is free. So only one insert in many pays for a walk. Every block is verified when it is read: after a
crash, a file may hold anything.

If the folder cannot be written, one warning says so and writing ends. A cache never ends a run.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import re
import secrets
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from maskloom.errors import UserError
from maskloom.files import open_own, private_folder
from maskloom.progress import warn

COUNT = "count"
PARTIAL = ".partial"
FREED_SHARE = 0.1
BUCKET = re.compile(r"[0-9a-f]{2}")
ENTRY = re.compile(r"[0-9a-f]{62}")  # only such files are ever removed: the folder may hold a user's own


def entry_name(sha256: str, offset: int, length: int) -> str:
    """The name of a block, from the shard's content and the range in it."""
    return hashlib.sha256(f"{sha256}:{offset}:{length}".encode()).hexdigest()


@functools.lru_cache(maxsize=8)
def open_cache(folder: str, bound_bytes: int) -> Cache:
    """The cache in `folder`, which is created if it is missing. Raises UserError if there is a file of that name."""
    return Cache(Path(folder), bound_bytes)


class Cache:
    """A bounded set of blocks. Any number of processes and threads may use one folder."""

    def __init__(self, folder: Path, bound_bytes: int) -> None:
        self.folder, self.bound_bytes, self.is_written = folder, bound_bytes, True
        try:
            private_folder(folder, "set data.storage.cache to a folder of your own")
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"data.storage.cache: {folder} is a file, or lies below one: name a folder") from None
        except OSError as error:
            self._give_up(error)

    def get(self, name: str, length: int, crc32: int) -> bytes | None:
        """The block, or None if it is not there. A damaged block is dropped."""
        path = self._path(name)
        try:
            with path.open("rb") as file:
                data = file.read()
                with contextlib.suppress(OSError):  # a cache that cannot be written can still be read
                    os.utime(file.fileno())
        except OSError:
            return None
        if len(data) == length and zlib.crc32(data) == crc32:
            return data
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def put(self, name: str, data: bytes) -> None:
        """Keep a block, and drop others if the bound requires it."""
        if not self.is_written or len(data) > self.bound_bytes:
            return
        path = self._path(name)
        try:
            file = self._reserve(path, len(data))
            if file is None:
                return
            partial = Path(file.name)
            try:
                with file:
                    file.write(data)
                    file.flush()
                    with self._lock():  # no rename during a walk, or its count would be wrong
                        partial.rename(path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
        except OSError as error:
            self._give_up(error)

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / name[2:]

    def _reserve(self, path: Path, size: int) -> BinaryIO | None:
        """A locked temporary of `size` bytes, already counted. None: the block is there, or there is no room for it."""
        path.parent.mkdir(exist_ok=True)
        with self._lock() as count:
            if path.exists():
                return None
            held = _read_count(count)
            if held is None or held + size > self.bound_bytes:
                held = self._make_room(size)
            if held + size > self.bound_bytes:  # other writers have reserved the rest
                _write_count(count, held)
                return None
            _write_count(count, held + size)
            file = path.with_name(f"{path.name}.{secrets.token_hex(8)}{PARTIAL}").open("xb")
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.truncate(size)
            except BaseException:
                file.close()
                Path(file.name).unlink(missing_ok=True)
                raise
            return file

    @contextlib.contextmanager
    def _lock(self) -> Iterator[int]:
        """Hold the lock; gives the descriptor of the file with the count."""
        count = open_own(self.folder / COUNT)
        try:
            fcntl.flock(count, fcntl.LOCK_EX)
            yield count
        finally:
            fcntl.flock(
                count, fcntl.LOCK_UN
            )  # if a process forked meanwhile, closing alone would leave the lock to its child
            os.close(count)

    def _make_room(self, size: int) -> int:
        """Drop the least recently used blocks until `size` bytes and a tenth of the bound are free. Returns the bytes held."""
        entries, held = [], 0
        for bucket in self.folder.iterdir():
            if not BUCKET.fullmatch(bucket.name):
                continue
            for entry in os.scandir(bucket):
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    if ENTRY.fullmatch(entry.name):
                        entries.append((status.st_mtime_ns, entry.path, status.st_size))
                    elif not entry.name.endswith(PARTIAL) or _remove_abandoned(Path(entry.path)):
                        continue
                    held += status.st_size
        goal = max(int(self.bound_bytes * (1 - FREED_SHARE)) - size, 0)
        for _, path, freed in sorted(entries):
            if held <= goal:
                break
            Path(path).unlink(missing_ok=True)
            held -= freed
        return held

    def _give_up(self, error: OSError) -> None:
        self.is_written = False
        warn(
            f"the cache {self.folder} cannot be written ({error.strerror}): this process keeps no more blocks. Make room "
            "there, or set data.storage.cache to another folder"
        )


def _remove_abandoned(partial: Path) -> bool:
    """Remove a temporary if its writer was killed, so that nobody holds its lock. Returns whether it did."""
    with partial.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        partial.unlink(missing_ok=True)
        return True


def _read_count(count: int) -> int | None:
    text = os.pread(count, 32, 0).strip()
    return int(text) if text.isdigit() else None


def _write_count(count: int, held: int) -> None:
    os.pwrite(count, f"{held:<20}\n".encode(), 0)
