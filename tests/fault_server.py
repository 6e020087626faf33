"""A loopback HTTP server of a folder with byte ranges and ETags, which fails as it is told.

A `Fault` strikes a request when its place, a byte of one file, lies in the range asked for: the body is right up to that
byte, and then what the fault names happens. `times` counts the requests it strikes; -1: all of them.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import threading
import zlib
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

RANGE = re.compile(r"bytes=(\d+)-(\d*)$")
DRIP_S = 0.02

Kind = Literal[
    "cut",  # the connection ends in the middle of a body that a Content-Length announced
    "cut chunked",  # ... of a chunked body
    "cut close",  # ... of a body whose end is the connection's end
    "reset",  # RST
    "stall",  # nothing more comes
    "drip",  # a byte at a time, for ever
    "flip",  # one bit is another
    "shorter",  # the file ends there, says every header
    "status",  # an answer without a body: an error, or a redirect
    "etag",  # another ETag from there on, the same bytes
    "content",  # another ETag and other bytes from there on
    "no range",  # 200 and the whole file
    "wrong range",  # a Content-Range of other bytes than were asked for
    "no length",  # 200 without a length
]


@dataclass
class Fault:
    kind: Kind
    at: int = 0
    times: int = 1
    path: str = ""  # of the file that it strikes, as the URL has it without the first slash; "": every file
    status: int = 503
    headers: tuple[tuple[str, str], ...] = ()
    shift: int = 512  # of a wrong range


class FaultServer(ThreadingHTTPServer):
    """Use as a context manager; `url` is where the folder stands."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, folder: Path, *faults: Fault) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.faults, self.lock = folder, list(faults), threading.Lock()
        self.requests: list[tuple[str, str]] = []  # (path with query, Range)
        self.editions: dict[str, Kind] = {}
        self.longest = 1 << 62  # bytes of one answer with a range
        self.ends = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> FaultServer:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ends.set()
        self.shutdown()
        self.server_close()

    def reset(self, *faults: Fault) -> None:
        """A server that has seen nothing, with other faults."""
        with self.lock:
            self.faults, self.editions, self.requests, self.longest = list(faults), {}, [], 1 << 62

    def strike(self, path: str, start: int, stop: int) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                inside = start <= fault.at or fault.kind in ("drip", "shorter")  # these hold for all that follows, too
                if fault.times and fault.path in ("", path) and inside and fault.at < max(stop, start + 1):
                    fault.times -= 1
                    if fault.kind in ("etag", "content"):
                        self.editions[path] = fault.kind
                    return fault
        return None

    def read(self, path: str) -> tuple[bytes, str]:
        """Content and ETag of a file as it stands now."""
        data = (self.folder / path).read_bytes()
        edition = self.editions.get(path)
        if edition == "content":
            data = bytes(byte ^ 1 for byte in data)
        return data, f'"{zlib.crc32(data):08x}{"-other" if edition else ""}"'

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).lstrip("/")
        asked = self.headers.get("Range", "")
        with self.server.lock:
            self.server.requests.append((self.path, asked))
        if not (self.server.folder / path).is_file():
            return self.answer(404)
        data, etag = self.server.read(path)
        match = RANGE.match(asked)
        start = int(match[1]) if match else 0
        stop = min(int(match[2]) + 1, len(data)) if match and match[2] else len(data)
        fault = self.server.strike(path, start, stop)
        kind = fault.kind if fault else ""
        if fault and kind == "status":
            return self.answer(fault.status, *fault.headers)
        if fault and kind == "shorter":
            data = data[: fault.at]
            stop = min(stop, len(data))
        if match and start >= len(data):
            return self.answer(416, ("Content-Range", f"bytes */{len(data)}"))
        if kind == "no range" or not match or kind == "no length":
            start, stop, match = 0, len(data), None
        stop = min(stop, start + self.server.longest) if match else stop
        self.send_response(206 if match else 200)
        self.send_header("ETag", etag)
        if match:
            shift = fault.shift if fault and kind == "wrong range" else 0
            self.send_header("Content-Range", f"bytes {start + shift}-{stop - 1 + shift}/{len(data)}")
        body = data[start:stop]
        if kind == "cut chunked":
            self.send_header("Transfer-Encoding", "chunked")
        elif kind in ("cut close", "no length"):
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.send_body(fault, body, max((fault.at if fault else 0) - start, 0))
        return None

    def answer(self, status: int, *headers: tuple[str, str]) -> None:
        """An answer without data."""
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_body(self, fault: Fault | None, body: bytes, at: int) -> None:
        kind = fault.kind if fault else ""
        if kind == "flip":
            damaged = bytearray(body)
            damaged[at] ^= 1
            self.wfile.write(damaged)
        elif kind == "cut chunked":
            self.wfile.write(b"%x\r\n%b\r\n" % (at, body[:at]) if at else b"")
            self.close_connection = True
        elif kind in ("cut", "cut close", "etag", "content"):  # a version that changes ends the body of the one before
            self.wfile.write(body[:at])
            self.close_connection = True
        elif kind == "reset":
            self.wfile.write(body[:at])
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            os.close(self.connection.detach())  # at once: an orderly end would come first
        elif kind == "stall":
            self.wfile.write(body[:at])
            self.wfile.flush()
            self.server.ends.wait()
            self.close_connection = True
        elif kind == "drip":
            self.wfile.write(body[:at])
            for byte in body[at:]:
                if self.server.ends.wait(DRIP_S):
                    break
                self.wfile.write(bytes([byte]))
            self.close_connection = True
        else:
            self.wfile.write(body)
