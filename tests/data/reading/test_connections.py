"""Connections: shared within a process, never across a fork, through a proxy, with a bound on every head."""

from __future__ import annotations

import contextlib
import multiprocessing
import shutil
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

from maskloom.config import Storage
from maskloom.data.reading.connections import pool
from maskloom.data.reading.storage import open_range, read_whole, size_of
from maskloom.errors import PassingFault, UserError
from tests.conftest import missing
from tests.fault_server import Fault, FaultServer

from .serving import CONTENT, CRC32, LENGTH, QUICK, START, block


def certificate(folder: Path) -> Path:
    """A certificate for 127.0.0.1 that signs itself, and its key, in one file."""
    if not shutil.which("openssl"):
        missing("openssl")
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    subprocess.run(["openssl", "req", "-x509", "-nodes", *curve, *subject, *files], check=True, capture_output=True)
    (folder / "both.pem").write_text((folder / "key.pem").read_text() + (folder / "cert.pem").read_text())
    return folder / "both.pem"


def test_https_trusts_whom_the_environment_names(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(tmp_path))
    with FaultServer(server.folder) as secure:
        secure.socket = context.wrap_socket(secure.socket, server_side=True)
        secure.reset(Fault("cut", at=START + 40_000))
        url = f"{secure.url.replace('http:', 'https:')}/a.tar"
        with pytest.raises(UserError, match=r"certificate is not one that is trusted here.*SSL_CERT_FILE"):
            open_range(url, START, LENGTH, CRC32, settings=QUICK)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        pool.cache_clear()
        assert open_range(url, START, LENGTH, CRC32, settings=QUICK).read() == CONTENT[START : START + LENGTH]
        there = (("Location", f"{secure.url}/a.tar"),)
        secure.reset(Fault("status", at=START, status=302, headers=there))
        with pytest.raises(UserError, match="never from https to http"):
            open_range(url, START, LENGTH, CRC32, settings=QUICK)
    pool.cache_clear()


def connections(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows with every connection that the server accepts from here on."""
    accepted: list[object] = []
    original = server.process_request
    monkeypatch.setattr(server, "process_request", lambda *given: (accepted.append(given), original(*given)))
    pool.cache_clear()
    return accepted


def test_connections_are_used_again(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    accepted = connections(server, monkeypatch)
    for _ in range(5):
        block(server)
        size_of(f"{server.url}/a.tar", QUICK)
    assert len(server.requests) == 10
    assert len(accepted) == 1


def _read_in_a_fork(url: str) -> None:
    open_range(url, START, LENGTH, CRC32, settings=QUICK)


def test_no_connection_crosses_a_fork(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes on one connection would read each other's bytes: each child opens one of its own."""
    accepted = connections(server, monkeypatch)
    block(server)  # there is a connection now
    for _ in range(3):
        child = multiprocessing.get_context("fork").Process(target=_read_in_a_fork, args=(f"{server.url}/a.tar",))
        child.start()
        child.join(30)
        assert child.exitcode == 0
    block(server)
    assert len(accepted) == 1 + 3


def test_a_proxy_is_used_as_the_environment_says(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our server stands in for a proxy: it sees the whole URL of another host."""
    monkeypatch.setenv("http_proxy", server.url.replace("//", "//user:word@"))
    monkeypatch.delenv("no_proxy", raising=False)
    assert read_whole("http://elsewhere.invalid/a.tar", QUICK) == CONTENT
    assert server.requests == [("http://elsewhere.invalid/a.tar", "bytes=0-")]
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server.reset()
    assert block(server)
    assert server.requests[0][0] == "/a.tar"


HEADS_WITHOUT_END = {
    "status 100": (b"HTTP/1.1 100 Continue\r\n\r\n", 0.0),
    "drip": (b"x", 0.01),
    "drip of headers": (b"A: b\r\n", 0.05),
}


@pytest.mark.parametrize("kind", HEADS_WITHOUT_END)
def test_a_head_without_end_is_given_up(kind: str) -> None:
    """Each byte comes in time, so that no timeout of the socket ends it."""
    piece, pause_s = HEADS_WITHOUT_END[kind]
    ends = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError), server.accept()[0] as client:
                client.recv(65536)
                client.sendall(b"HTTP/1.1 206 Partial Content\r\n" if piece[:1] == b"A" else b"")
                while not ends.wait(pause_s):
                    client.sendall(piece)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.tar"
        try:
            with pytest.raises(PassingFault, match=r"no answer, or no more of one, came in 0\.3 s"):
                open_range(url, 0, 10, 0, settings=Storage(timeout_s=0.3, attempts=1))
        finally:
            ends.set()
            thread.join(10)
