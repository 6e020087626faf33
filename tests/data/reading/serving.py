"""One object on a server of this machine, for the tests of this folder."""

from __future__ import annotations

import zlib

from maskloom.config import Storage
from maskloom.data.reading.storage import open_range
from tests.fault_server import FaultServer

QUICK = Storage(timeout_s=0.3, attempts=3)
CONTENT = bytes(position * 7 % 251 for position in range(200_000))
START, LENGTH = 50_000, 100_000
CRC32 = zlib.crc32(CONTENT[START : START + LENGTH])


def block(server: FaultServer, settings: Storage = QUICK) -> bytes:
    return open_range(f"{server.url}/a.tar", START, LENGTH, CRC32, settings=settings).read()
