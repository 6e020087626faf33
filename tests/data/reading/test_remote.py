from __future__ import annotations

import contextlib
import logging
import multiprocessing
import pickle
import shutil
import socket
import ssl
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from maskloom import progress
from maskloom.config import Storage
from maskloom.data.reading import remote, storage
from maskloom.data.reading.connections import pool
from maskloom.data.reading.storage import fetch, join, list_tars, open_range, read_whole, size_of
from maskloom.errors import DataFault, PassingFault, UserError
from maskloom.redaction import shown
from tests.conftest import missing
from tests.fault_server import Fault, FaultServer

QUICK = Storage(timeout_s=0.3, attempts=3)
CONTENT = bytes(position * 7 % 251 for position in range(200_000))
START, LENGTH = 50_000, 100_000
CRC32 = zlib.crc32(CONTENT[START : START + LENGTH])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultServer]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "a.tar").write_bytes(CONTENT)
    (folder / "empty").write_bytes(b"")
    with FaultServer(folder) as server:
        yield server


@pytest.fixture
def server(shared: FaultServer, monkeypatch: pytest.MonkeyPatch) -> FaultServer:
    """A server without faults, met for the first time."""
    shared.reset()
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(storage, "_first_versions", {})
    monkeypatch.setattr(storage, "_warned", set())
    return shared


def block(server: FaultServer, settings: Storage = QUICK) -> bytes:
    return open_range(f"{server.url}/a.tar", START, LENGTH, CRC32, settings=settings).read()


@examples(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(CONTENT) - 1), st.integers(1, 70_000))
def test_a_range_is_the_bytes_that_stand_there(server: FaultServer, offset: int, length: int) -> None:
    expected = CONTENT[offset : offset + length]
    url = f"{server.url}/a.tar"
    assert open_range(url, offset, len(expected), zlib.crc32(expected), settings=QUICK).read() == expected


@pytest.mark.parametrize(
    "kind", ["cut", "cut chunked", "cut close", "reset", "stall", "drip", "flip", "wrong range", "etag"]
)
def test_a_fault_that_passes_is_survived(server: FaultServer, kind: str) -> None:
    server.reset(Fault(kind, at=START + 40_000))
    assert block(server) == CONTENT[START : START + LENGTH]
    assert len(server.requests) > 1, "the fault did not strike"


def test_a_broken_body_is_resumed_where_it_broke(server: FaultServer) -> None:
    server.reset(Fault("cut", at=START + 40_000))
    block(server)
    assert [asked for _, asked in server.requests] == [
        f"bytes={START}-{START + LENGTH - 1}",
        f"bytes={START + 40_000}-{START + LENGTH - 1}",
    ]


def test_parts_of_two_versions_are_never_joined(server: FaultServer) -> None:
    """The tail of the first version is what is asked for; it comes from a server that has another one."""
    server.reset(Fault("content", at=START + 40_000))
    other = bytes(byte ^ 1 for byte in CONTENT[START : START + LENGTH])
    data, version = remote.read_range(f"{server.url}/a.tar", START, LENGTH, QUICK)
    assert data == other
    assert "-other" in version
    assert server.requests[-1][1] == f"bytes={START}-{START + LENGTH - 1}"


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_an_error_that_passes_is_waited_for(server: FaultServer, status: int) -> None:
    server.reset(Fault("status", at=START, status=status, times=2))
    assert block(server) == CONTENT[START : START + LENGTH]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("status", status=503), "status 503 Service Unavailable; 3 attempt"),
        (Fault("cut"), "the connection ended early; 3 attempt"),
        (Fault("stall"), r"no answer, or no more of one, came in 0\.3 s; 3 attempt"),
        (Fault("drip"), r"only \d+ bytes came in 0\.3 s; 3 attempt"),
        (Fault("wrong range"), "the server answers with 'bytes 50512-"),
        (Fault("wrong range", shift=-512), "the server answers with 'bytes 49488-"),
        (Fault("no range"), "sends the whole object when asked for a part of it"),
        (Fault("status", status=403), "status 403 Forbidden: it may be read with other credentials"),
        (Fault("status", status=400), "status 400 Bad Request"),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else "",
)
def test_what_cannot_be_reached_is_no_fault_of_the_data(server: FaultServer, fault: Fault, message: str) -> None:
    fault.at, fault.times = START + 40_000, -1
    server.reset(fault)
    with pytest.raises(UserError, match=message) as caught:
        block(server)
    assert not isinstance(caught.value, DataFault)
    fault.times = 0


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault("status", status=404), "missing"),
        (Fault("status", status=410), "missing"),
        (Fault("shorter"), "truncated"),
        (Fault("flip"), "checksum"),
    ],
    ids=["404", "410", "shorter", "flip"],
)
def test_data_that_is_not_what_was_indexed_is_named(server: FaultServer, fault: Fault, kind: str) -> None:
    fault.at, fault.times = START + 40_000, -1
    server.reset(fault)
    with pytest.raises(DataFault, match=r"/a\.tar") as caught:
        block(server)
    assert (caught.value.kind, caught.value.shard, caught.value.offset) == (kind, f"{server.url}/a.tar", START)


def test_a_fault_names_the_block_also_after_a_broken_body(server: FaultServer) -> None:
    at = START + 40_000
    server.reset(Fault("cut", at=at), Fault("status", at=at, status=404))
    with pytest.raises(DataFault) as caught:
        block(server)
    assert caught.value.offset == START


def test_an_object_that_ends_before_the_range_is_truncated(server: FaultServer) -> None:
    server.reset(Fault("shorter", at=1000, times=-1))
    (server.folder / "short.tar").write_bytes(CONTENT[:1000])
    with pytest.raises(DataFault, match="has 1000 bytes, and those up to 150000 are needed") as caught:
        open_range(f"{server.url}/short.tar", START, LENGTH, CRC32, settings=QUICK)
    assert caught.value.kind == "truncated"


def test_another_version_with_the_same_bytes_is_told_once(
    server: FaultServer, capfd: pytest.CaptureFixture[str]
) -> None:
    block(server)
    server.editions["a.tar"] = "etag"
    assert block(server) == block(server) == CONTENT[START : START + LENGTH]
    assert capfd.readouterr().err.count("has a new version") == 1


def test_another_version_with_other_bytes_names_both(server: FaultServer) -> None:
    block(server)
    server.editions["a.tar"] = "content"
    with pytest.raises(
        DataFault, match=r'at first it was "[0-9a-f]{8}", 200000 bytes, then "[0-9a-f]{8}-other"'
    ) as caught:
        block(server)
    assert caught.value.kind == "changed"


def test_new_bytes_begin_the_count_of_attempts_again(server: FaultServer) -> None:
    """Twice as many broken bodies as attempts, each some bytes further on."""
    server.reset(*(Fault("cut", at=START + 10_000 * number) for number in range(1, 7)))
    assert block(server) == CONTENT[START : START + LENGTH]


@pytest.mark.parametrize("longest", [1 << 20, 30_000])
def test_versions_that_alternate_end_the_read(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, longest: int
) -> None:
    """Two mirrors with other ETags, and bodies that always end at one place: no byte is ever new."""
    server.reset(*[Fault("cut", at=START + 40_000, times=-1)] * (longest > LENGTH))
    server.longest = longest
    turns = iter(range(1000))
    original = server.read
    monkeypatch.setattr(server, "read", lambda path: (original(path)[0], f'"{next(turns) % 2}"'))
    with pytest.raises(UserError, match="3 attempt"):
        block(server)


def test_a_server_may_answer_with_less_than_was_asked_for(server: FaultServer) -> None:
    server.longest = 30_000
    assert block(server) == CONTENT[START : START + LENGTH]
    assert read_whole(f"{server.url}/a.tar", QUICK) == CONTENT


@pytest.mark.parametrize("size", [50_000, 300_000, 10, 0])
def test_an_object_that_changes_its_size_is_read_from_its_start(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: int
) -> None:
    server.reset(Fault("cut", at=120_000))
    versions = iter([(CONTENT, '"first"')])
    monkeypatch.setattr(server, "read", lambda path: next(versions, (b"x" * size, '"second"')))
    counts: list[int] = []
    fetch(f"{server.url}/a.tar", tmp_path / "a.tar", QUICK, counts.append)
    assert (tmp_path / "a.tar").read_bytes() == b"x" * size
    assert sum(counts) == size


def test_waits_grow_and_are_bounded_by_the_timeout(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(remote, "time", SimpleNamespace(sleep=waits.append, monotonic=time.monotonic))
    server.reset(Fault("status", at=START, status=503, headers=(("Retry-After", "86400"),)))
    assert block(server) == CONTENT[START : START + LENGTH]
    assert waits == [QUICK.timeout_s]
    waits.clear()
    server.reset(Fault("status", at=START, status=503, headers=(("Retry-After", "nonsense"),), times=7))
    block(server, QUICK.model_copy(update={"attempts": 8}))
    assert waits == sorted(waits)
    assert waits[0] < waits[1] < waits[-1] == QUICK.timeout_s


@pytest.mark.parametrize(
    "location", ["http://localhost:{port}/a.tar", "ftp://127.0.0.1/a.tar", "http://u:p@127.0.0.1/"]
)
def test_a_redirect_elsewhere_is_refused(server: FaultServer, location: str) -> None:
    there = location.format(port=server.server_address[1])
    server.reset(Fault("status", at=START, status=302, headers=(("Location", there),)))
    with pytest.raises(UserError, match="on the same host only") as caught:
        block(server)
    assert "u:p" not in str(caught.value)


def test_a_redirect_on_the_same_host_is_followed(server: FaultServer) -> None:
    server.reset(Fault("status", at=START, status=302, headers=(("Location", "/a.tar?moved"),)))
    assert block(server) == CONTENT[START : START + LENGTH]
    server.reset(Fault("status", at=START, status=302, times=-1, headers=(("Location", "/a.tar"),)))
    with pytest.raises(UserError, match="more than 5 redirects"):
        block(server)


def test_a_refused_connection_and_an_unknown_host_are_named() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/a.tar"
    with pytest.raises(
        PassingFault, match=r"a\.tar cannot be read: the connection failed: Connection refused; 2 attempt"
    ):
        read_whole(url, Storage(timeout_s=0.2, attempts=2))
    with pytest.raises(PassingFault, match="the name of its host is not known"):
        read_whole("http://no-such-host.invalid/a.tar", Storage(timeout_s=0.2, attempts=1))


@pytest.mark.parametrize(
    ("fault", "can_retry"),
    [
        (Fault("status", at=START, status=503, times=-1), True),
        (Fault("status", at=START, status=500, times=-1), True),
        (Fault("stall", at=START + 40_000, times=-1), True),
        (Fault("reset", at=START + 40_000, times=-1), True),
        (Fault("status", at=START, status=404, times=-1), False),
        (Fault("status", at=START, status=403, times=-1), False),
        (Fault("flip", at=START + 40_000, times=-1), False),
    ],
    ids=["503", "500", "stall", "reset", "404", "403", "flip"],
)
def test_another_attempt_of_the_run_may_find_a_server_that_is_down_but_no_object_that_is_not_right(
    fault: Fault, can_retry: bool, server: FaultServer
) -> None:
    server.reset(fault)
    with pytest.raises(UserError) as caught:
        block(server)
    assert pickle.loads(pickle.dumps(caught.value)).can_retry == can_retry  # as it comes from a reader process


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


def test_a_query_reaches_the_server_and_no_message(
    server: FaultServer, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = f"{server.url}/a.tar?signature=SECRET#part"
    open_range(url, START, LENGTH, CRC32, settings=QUICK)
    assert server.requests[0][0] == "/a.tar?signature=SECRET"
    server.editions["a.tar"] = "etag"
    open_range(url, START, LENGTH, CRC32, settings=QUICK)
    server.editions["a.tar"] = "content"
    faults = [Fault("status", status=status, times=-1) for status in (404, 403, 503)]
    faults += [Fault(kind, times=-1) for kind in ("no range", "wrong range", "cut", "shorter", "reset")]
    faults += [Fault("status", status=302, times=-1, headers=(("Location", "http://other.invalid/?SECRET"),))]
    said = [shown("http://h?SECRET/SECRET"), shown("https://u:SECRET@h/a#SECRET")]
    for fault in [None, *faults]:
        server.faults = [fault] if fault else []
        if fault:
            fault.at = START
        with pytest.raises(UserError) as caught:
            open_range(url, START, LENGTH, CRC32, settings=Storage(timeout_s=0.2, attempts=1))
        said += [str(caught.value), repr(caught.value.__dict__)]
    for bad in (
        "http://127.0.0.1:9/a.tar?SECRET",
        "http://[::1/a.tar?SECRET",
        "http:///a.tar?SECRET",
        "gs://b/a?SECRET",
    ):
        with pytest.raises(UserError) as caught:
            open_range(bad, 0, 1, 0, settings=Storage(timeout_s=0.2, attempts=1))
        said.append(str(caught.value))
    out, err = capfd.readouterr()
    assert "SECRET" not in " ".join([*said, out, err, caplog.text])


def test_sizes_and_whole_objects(server: FaultServer, tmp_path: Path) -> None:
    for name, content in (("a.tar", CONTENT), ("empty", b"")):
        url = f"{server.url}/{name}"
        assert size_of(url, QUICK) == len(content)
        assert read_whole(url, QUICK) == content
        counts: list[int] = []
        fetch(url, tmp_path / name, QUICK, counts.append)
        assert (tmp_path / name).read_bytes() == content
        assert sum(counts) == len(content)
    with pytest.raises(DataFault) as caught:
        read_whole(f"{server.url}/none", QUICK)
    assert caught.value.kind == "missing"


@pytest.mark.parametrize("kind", ["cut", "cut chunked", "reset", "stall", "etag", "content", "no range", "wrong range"])
def test_a_whole_object_survives_what_a_range_survives(server: FaultServer, tmp_path: Path, kind: str) -> None:
    server.reset(Fault("cut", at=40_000), Fault(kind, at=120_000))
    counts: list[int] = []
    fetch(f"{server.url}/a.tar", tmp_path / "a.tar", QUICK, counts.append)
    expected = bytes(byte ^ 1 for byte in CONTENT) if kind == "content" else CONTENT
    assert (tmp_path / "a.tar").read_bytes() == expected
    assert sum(counts) == len(CONTENT)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_a_fetch_that_fails_leaves_what_was_there(server: FaultServer, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"before")
    server.reset(Fault("cut", at=40_000, times=-1))
    with pytest.raises(UserError, match="3 attempt"):
        fetch(f"{server.url}/a.tar", tmp_path / "a.tar", QUICK)
    with pytest.raises(UserError, match="cannot be copied to"):
        fetch(f"{server.url}/a.tar", tmp_path / "none" / "a.tar", QUICK)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.tar", b"before")]


def test_a_body_without_a_length_is_refused(server: FaultServer) -> None:
    """Nobody could tell its end from a connection that broke."""
    server.reset(Fault("no length", at=0, times=-1))
    for read in (read_whole, size_of):
        with pytest.raises(UserError, match="does not say how long"):
            read(f"{server.url}/a.tar", QUICK)


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


@pytest.mark.parametrize(
    ("base", "relative", "expected"),
    [
        ("http://h/c", "000.tar", "http://h/c/000.tar"),
        ("http://h/c/", "./10:00 #1?.tar", "http://h/c/10%3A00%20%231%3F.tar"),
        ("https://h/c?sas=1%2F2", "train/000.tar", "https://h/c/train/000.tar?sas=1%2F2"),
        ("s3://b/c d/", "./x #1.tar", "s3://b/c d/x #1.tar"),
        ("/data/c", "./10:00.tar", "/data/c/10:00.tar"),
    ],
)
def test_names_of_an_index_become_urls(base: str, relative: str, expected: str) -> None:
    assert join(base, relative) == expected


def test_http_has_no_listing(server: FaultServer) -> None:
    with pytest.raises(UserError, match="name the tars, each with its URL"):
        list_tars(f"{server.url}/?SECRET", QUICK)


def test_an_object_has_no_more_bytes_than_it_may(server: FaultServer, tmp_path: Path) -> None:
    """Whoever answers does not fill the memory or the disk; local files are held to the same."""
    copy = tmp_path / "copy"
    (tmp_path / "a.tar").write_bytes(CONTENT)
    size = len(CONTENT)
    for url in (f"{server.url}/a.tar", str(tmp_path / "a.tar")):
        assert read_whole(url, QUICK, size) == CONTENT
        with pytest.raises(UserError, match=rf"a\.tar has .*more than .*{size - 1:,}"):
            read_whole(url, QUICK, size - 1)
    fetch(f"{server.url}/a.tar", copy, QUICK, largest=size)
    assert copy.read_bytes() == CONTENT
    copy.unlink()
    with pytest.raises(UserError, match="has 200,000 bytes, more than the 199,999 that it may have"):
        fetch(f"{server.url}/a.tar", copy, QUICK, largest=size - 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar"]


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


def test_a_wait_between_attempts_is_said_once_in_its_time(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(remote, "SAID_WAIT_S", 0.0)
    monkeypatch.setattr(remote, "_quiet_until_s", {})
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 100.0)
    # The second wait begins within the first.
    monkeypatch.setattr(remote, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: None))
    server.reset(Fault("status", at=START, times=2))
    block(server, Storage(timeout_s=100.0, attempts=3))
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"WARNING: {server.url}/a.tar cannot be read: ")
    assert said.endswith("; attempt 1 of 3, the next in 100 s")


@pytest.mark.parametrize("is_known", [False, True])
def test_a_first_answer_that_takes_long_is_said(
    is_known: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.01)
    monkeypatch.setattr(remote, "_quiet_until_s", {})
    with socket.create_server(("127.0.0.1", 0)) as mute:
        host = f"127.0.0.1:{mute.getsockname()[1]}"
        monkeypatch.setattr(remote, "_have_answered", {host} if is_known else set())
        with pytest.raises(PassingFault):
            remote.read_range(f"http://{host}/a.tar", 0, 1, Storage(timeout_s=1.0, attempts=1))
    said = f"WARNING: {host} does not answer yet: waiting for it, 1 s at most\n"
    assert capsys.readouterr().err == ("" if is_known else said)
