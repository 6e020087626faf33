"""Batch files: the records of pass 1, sorted by the shard that they go to.

```
records of run 0, by bucket | records of run 1 | ... | int64 table [runs, buckets + 1] | JSON | tail
```
A run is what fits into memory. Entry [r, b] of the table is the place of bucket b's first record of run r. So pass 2 needs only
a few reads a file for one shard. A file never grows after it was written: it is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from maskloom.errors import UserError

MAGIC = b"MLSPILL1"
TAIL = struct.Struct("<8sQQQ")  # magic, where the table begins, where the JSON begins, size of the file
RECORD = struct.Struct("<I16sQI")  # CRC-32 of the rest, digest of the text, order, bytes of the text
RECORD_OVERHEAD_BYTES = 160  # a record's memory beside its text


class Record(NamedTuple):
    """A piece of text on its way to a shard; records sort by `order`."""

    order: int
    digest: bytes
    text: bytes


def text_digest(text: bytes) -> bytes:
    """A digest of 16 bytes. Pieces of text with the same digest count as equal."""
    return hashlib.blake2b(text, digest_size=16).digest()


class SpillWriter:
    """Writes one batch file.

    Args:
        file: open for writing, empty.
        run_bytes: memory that records may take before they are written.
    """

    def __init__(self, file: IO[bytes], buckets: int, run_bytes: int) -> None:
        self.file, self.buckets, self.run_bytes = file, buckets, run_bytes
        self.held: list[tuple[int, bytes]] = []
        self.held_bytes = 0
        self.starts: list[list[int]] = []
        self.position = 0

    def add(self, bucket: int, record: Record) -> None:
        data = RECORD.pack(0, record.digest, record.order, len(record.text)) + record.text
        data = zlib.crc32(memoryview(data)[4:]).to_bytes(4, "little") + data[4:]
        self.held.append((bucket, data))
        self.held_bytes += len(data) + RECORD_OVERHEAD_BYTES
        if self.held_bytes >= self.run_bytes:
            self._write_run()

    def finish(self, notes: Mapping[str, object]) -> None:
        """Write what is held, the table and `notes`."""
        self._write_run()
        table_at = self.position
        self._write(np.asarray(self.starts, dtype="<i8").tobytes())
        notes_at = self.position
        self._write(json.dumps(notes).encode())
        self.file.write(TAIL.pack(MAGIC, table_at, notes_at, self.position + TAIL.size))

    def _write_run(self) -> None:
        if not self.held:
            return
        self.held.sort(key=lambda item: item[0])
        sizes = np.zeros(self.buckets + 1, dtype=np.int64)
        for bucket, data in self.held:
            sizes[bucket + 1] += len(data)
        self.starts.append((self.position + np.cumsum(sizes)).tolist())
        for _, data in self.held:
            self._write(data)
        self.held, self.held_bytes = [], 0

    def _write(self, data: bytes) -> None:
        self.file.write(data)
        self.position += len(data)


def read_notes(path: Path) -> dict[str, Any]:
    """What `SpillWriter.finish` was given. Raises UserError for a damaged file."""
    with path.open("rb", buffering=0) as file:
        _, notes_at, end = _tail(file, path)
        try:
            notes = json.loads(_read(file, notes_at, end - TAIL.size - notes_at))
        except ValueError:
            raise _damaged(path) from None
    assert isinstance(notes, dict)
    return notes


def read_bucket(path: Path, bucket: int, buckets: int) -> Iterator[Record]:
    """The records of one bucket. Raises UserError for a damaged file."""
    with path.open("rb", buffering=0) as file:
        table_at, notes_at, _ = _tail(file, path)
        if (notes_at - table_at) % (8 * (buckets + 1)):
            raise _damaged(path)
        for row_at in range(table_at, notes_at, 8 * (buckets + 1)):
            start, end = struct.unpack("<2q", os.pread(file.fileno(), 16, row_at + 8 * bucket))
            if not 0 <= start <= end <= table_at:
                raise _damaged(path)
            yield from _records(_read(file, start, end - start), path)


def _records(data: bytes, path: Path) -> Iterator[Record]:
    view, place = memoryview(data), 0
    while place < len(data):
        if place + RECORD.size > len(data):
            raise _damaged(path)
        crc32, digest, order, length = RECORD.unpack_from(data, place)
        end = place + RECORD.size + length
        if end > len(data) or zlib.crc32(view[place + 4 : end]) != crc32:
            raise _damaged(path)
        yield Record(order, digest, data[place + RECORD.size : end])
        place = end


def _read(file: IO[bytes], start: int, length: int) -> bytes:
    """All bytes of a range, in several reads: one gives 2 GiB at most."""
    parts = []
    while length > 0:
        data = os.pread(file.fileno(), length, start)
        if not data:
            break
        parts.append(data)
        start, length = start + len(data), length - len(data)
    return b"".join(parts)


def _tail(file: IO[bytes], path: Path) -> tuple[int, int, int]:
    """(where the table begins, where the JSON begins, size of the file)."""
    size = os.fstat(file.fileno()).st_size
    data = os.pread(file.fileno(), TAIL.size, max(size - TAIL.size, 0))
    if len(data) != TAIL.size:
        raise _damaged(path)
    magic, table_at, notes_at, end = TAIL.unpack(data)
    if magic != MAGIC or end != size or not table_at <= notes_at <= end - TAIL.size:
        raise _damaged(path)
    return table_at, notes_at, end


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is damaged: remove it and start the same command again; it then reads that part anew")
