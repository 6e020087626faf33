"""Answers of an http server, byte by byte: status lines, headers, bodies.

The server is a socket that sends what it is given to whoever connects, and closes: what comes of a well-formed answer that
stalls or drips is in `tests/data/test_remote.py`.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from maskloom.config import Storage
from maskloom.data.reading.remote import fetch, read_range, read_whole, size_of
from maskloom.errors import UserError

from .harness import fuzz

MEMORY_BYTES = 64 << 20
LARGEST = 1 << 20
BODY = b"0123456789" * 20
QUICK = Storage(timeout_s=1.0, attempts=1)


def answer(status: bytes, body: bytes, *headers: bytes) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 " + status, *headers, b"", body])


LENGTH = b"Content-Length: 200"
SEEDS = [
    answer(b"206 Partial Content", BODY, LENGTH, b"Content-Range: bytes 0-199/200", b'ETag: "1a2b"'),
    answer(b"200 OK", BODY, LENGTH, b"Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT"),
    answer(
        b"206 Partial Content",
        b"64\r\n" + BODY[:100] + b"\r\n64\r\n" + BODY[100:] + b"\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked",
        b"Content-Range: bytes 0-199/200",
    ),
    answer(b"416 Range Not Satisfiable", b"", b"Content-Length: 0", b"Content-Range: bytes */0"),
    answer(b"404 Not Found", b"<Code>NoSuchKey</Code>", b"Content-Length: 22"),
    answer(b"503 Slow Down", b"", b"Content-Length: 0", b"Retry-After: 0"),
    answer(b"503 Slow Down", b"", b"Content-Length: 0", b"Retry-After: Wed, 21 Oct 2015 07:28:00 GMT"),
    answer(b"302 Found", b"", b"Content-Length: 0", b"Location: /elsewhere"),
    answer(b"206 Partial Content", BODY, LENGTH, b"Content-Range: bytes 0-199/200", b"Content-Encoding: gzip"),
]
WORDS = [
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.0 200",
    b"HTTP/9.9",
    b"Content-Length: -1\r\n",
    b"Content-Length: 99999999999999999999\r\n",
    b"Content-Length: " + b"9" * 5000 + b"\r\n",
    b"Content-Length: 1\r\n",
    b"Content-Range: bytes 0-" + b"9" * 5000 + b"/*\r\n",
    b"Content-Range: bytes 0-199/*\r\n",
    b"Content-Range: bytes 0-199/99999999999999\r\n",
    b"Content-Range: bytes 5-3/200\r\n",
    "Content-Range: bytes 0-\u0661/200\r\n".encode(),
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"\r\nfffffffffffffff\r\n",
    b"\r\n-5\r\n",
    b"Retry-After: " + b"9" * 5000 + b"\r\n",
    b"Retry-After: Wed, 21 Oct 99999 07:28:00 GMT\r\n",
    b"Location: http://[::1\r\n",
    b"Location: http://example.com/\r\n",
    b"Location: //127.0.0.1:99999/\r\n",
    b"Location: file:///etc/passwd\r\n",
    b"Location: \xff\xfe\r\n",
    b"ETag: \xff\r\n",
    b"A: b\r\n" * 150,
    b": \r\n",
    b"\r\n folded\r\n",
    b"\0",
    b"x" * 70000,
]


class Server:
    """Sends `data` to each who connects, once a request has come."""

    def __init__(self) -> None:
        self.data = b""
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}/a"

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self.socket.accept()
            except OSError:  # closed
                return
            with contextlib.suppress(OSError), client:
                client.settimeout(1)
                client.recv(65536)
                client.sendall(self.data)


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.socket.close()


def test_a_range_and_a_whole_object(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given is as long as what was asked for, whoever says what."""
    monkeypatch.setattr("maskloom.data.reading.remote.FIRST_WAIT_S", 0.0)
    path = tmp_path / "copy"

    def read(data: bytes) -> None:
        server.data = data
        how = sum(data) % 4
        if how == 0:
            assert len(read_range(server.url, 0, 200, QUICK)[0]) == 200
        elif how == 1:
            assert len(read_whole(server.url, QUICK, LARGEST)) <= LARGEST
        elif how == 2:
            fetch(server.url, path, QUICK, lambda count: None, LARGEST)
            assert path.stat().st_size <= LARGEST
        else:
            assert size_of(server.url, QUICK) >= 0

    def refuses_seeds(data: bytes) -> None:
        try:
            read(data)
        except UserError:
            if data not in SEEDS:  # some of them are refusals
                raise

    fuzz(refuses_seeds, SEEDS, WORDS, folder=tmp_path, inputs=500, memory_bytes=MEMORY_BYTES)
