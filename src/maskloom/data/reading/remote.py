"""Bytes of an object over http(s) or from S3, whole or not at all.

One loop reads everything. It asks for a byte range. When the body breaks off, stalls or crawls, it asks again from the byte
that it has come to. If the next answer is of another version of the object, it starts again and keeps no byte of the old one.

An attempt has failed if it brought no byte beyond those that were there, or brought them too slowly. After `attempts` failures
in a row the read ends with a `PassingFault`: nothing of the data is bad, and another attempt of the run may reach it. Whether
the bytes are the right ones is for the caller to check.

Files: `connections.py` opens connections, `ranges.py` makes one request and reads its answer, `s3.py` signs URLs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from urllib3.exceptions import HTTPError

from maskloom.config import Storage
from maskloom.data.reading.ranges import Broken, RangeAnswer, ask_range, reason_of, warn_of_host
from maskloom.errors import DataFault, PassingFault, UserError
from maskloom.redaction import shown

CHUNK_BYTES = 256 * 1024
SLOWEST_BYTES = 32 * 1024  # in `timeout_s`; a drip of bytes would never meet a socket's own timeout
FIRST_WAIT_S = 0.25
SAID_WAIT_S = 3.0  # a wait between attempts that a user should know of


def read_range(url: str, offset: int, length: int, settings: Storage) -> tuple[bytes, str]:
    """The bytes [offset, offset + length) of an object, and the version that all of them belong to.

    Raises:
        DataFault: there is no such object (`missing`), or it ends before (`truncated`).
        PassingFault: it cannot be reached.
        UserError: its server refuses it, or has no byte ranges.
    """
    data = bytearray()
    version = _receive(url, offset, offset + length, settings, data.extend, data.clear)
    return bytes(data), version


def read_whole(url: str, settings: Storage, largest: int | None = None) -> bytes:
    """All bytes of a small object. Raises as `read_range`, and UserError if it has more than `largest` bytes."""
    data = bytearray()
    _receive(url, 0, None, settings, data.extend, data.clear, largest)
    return bytes(data)


def fetch(url: str, path: Path, settings: Storage, on_bytes: Callable[[int], None], largest: int | None = None) -> None:
    """Write all bytes of an object to `path`. `on_bytes` gets the bytes as they come, and a negative count if the read starts
    again. Raises as `read_whole`."""
    with path.open("wb") as file:

        def write(chunk: bytes) -> None:
            file.write(chunk)
            on_bytes(len(chunk))

        def clear() -> None:
            on_bytes(-file.tell())
            file.seek(0)
            file.truncate()

        _receive(url, 0, None, settings, write, clear, largest)
        file.flush()
        os.fsync(file.fileno())


def size_of(url: str, settings: Storage) -> int:
    """Size of an object in bytes. Raises as `read_range`."""
    retries = _Retries(url, settings)
    while True:
        try:
            with ask_range(url, 0, 1, settings, whole=True) as answer:
                if answer.stop == 1:
                    for _ in _chunks(answer, 1, settings):
                        pass  # read the body to its end: then the connection can be used again
                assert answer.total is not None, "asked for as a whole"
                return answer.total
        except Broken as broken:
            retries.after(broken, progress=False)


def _receive(
    url: str,
    start: int,
    stop: int | None,
    settings: Storage,
    write: Callable[[bytes], object],
    clear: Callable[[], object],
    largest: int | None = None,
) -> str:
    """Give the bytes [start, stop) of one version of an object to `write`, in order. Returns the version.

    Args:
        stop: None: to the end.
        clear: called when all that was written so far belongs to another version.
        largest: bytes that the whole may have; None: any number.
    """
    retries, whole = _Retries(url, settings), stop is None
    at = furthest = start
    version = ""
    while stop is None or at < stop:
        before = furthest
        try:
            with ask_range(url, at, stop, settings, whole=whole) as answer:
                if at > start and (answer.version != version or answer.start != at):
                    clear()
                    at, stop = start, None if whole else stop
                    if answer.start != start:
                        raise Broken(
                            "it changed while it was read"
                        )  # a failed attempt: mirrors might alternate for ever
                version = answer.version
                stop = answer.total if whole else stop
                if largest is not None and max(answer.stop, answer.total or 0) > largest:
                    raise UserError(
                        f"{shown(url)} has {answer.total:,} bytes, more than the {largest:,} that it may have"
                    )
                for chunk in _chunks(answer, answer.stop - at, settings):
                    write(chunk)
                    at += len(chunk)
                    furthest = max(furthest, at)
        except Broken as broken:
            retries.after(broken, progress=furthest > before)
        except DataFault as fault:
            fault.offset = start  # the block, not the byte that the read had come to
            raise
    return version


def _chunks(answer: RangeAnswer, length: int, settings: Storage) -> Iterator[bytes]:
    """The next `length` bytes of a body as they come. Raises Broken if it ends early, stalls or crawls."""
    since, recent = time.monotonic(), 0
    while length:
        try:
            chunk = answer.response.read1(min(length, CHUNK_BYTES), decode_content=False)
        except (HTTPError, OSError) as error:
            raise Broken(reason_of(error, settings)) from None
        if not chunk:
            raise Broken("the connection ended early")
        yield chunk
        length -= len(chunk)
        recent += len(chunk)
        if time.monotonic() - since >= settings.timeout_s:
            if length and recent < SLOWEST_BYTES:
                raise Broken(f"only {recent} bytes came in {settings.timeout_s:g} s", slow=True)
            since, recent = time.monotonic(), 0


class _Retries:
    """Counts failed attempts in a row, and waits between them."""

    def __init__(self, url: str, settings: Storage) -> None:
        self.url, self.settings, self.failed = url, settings, 0

    def after(self, broken: Broken, *, progress: bool) -> None:
        """Wait before the next attempt. Raises PassingFault if none is left."""
        if progress and not broken.slow:
            self.failed = 0
            return
        self.failed += 1
        if self.failed >= self.settings.attempts:
            raise PassingFault(
                f"{shown(self.url)} cannot be read: {broken}; {self.failed} attempt(s) in a row failed. Look at the "
                "server and the network, or raise data.storage.attempts or data.storage.timeout_s"
            ) from None
        # Spread the retries: all ranks lost the server at the same moment.
        wait_s = FIRST_WAIT_S * 4 ** (self.failed - 1) * (1 + os.getpid() % 256 / 512)
        wait_s = min(max(wait_s, broken.wait_s), self.settings.timeout_s)
        if wait_s >= SAID_WAIT_S:
            attempt = f"attempt {self.failed} of {self.settings.attempts}, the next in {wait_s:.0f} s"
            warn_of_host(self.url, f"{shown(self.url)} cannot be read: {broken}; {attempt}", wait_s)
        time.sleep(wait_s)
