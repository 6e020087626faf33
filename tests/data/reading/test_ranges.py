"""One request and its answer: redirects, refusals, versions, and messages without a secret."""

from __future__ import annotations

import logging
import pickle
import socket

import pytest

from maskloom import progress
from maskloom.config import Storage
from maskloom.data.reading import ranges, remote
from maskloom.data.reading.storage import open_range, read_whole, size_of
from maskloom.errors import DataFault, PassingFault, UserError
from maskloom.redaction import shown
from tests.fault_server import Fault, FaultServer

from .serving import CONTENT, CRC32, LENGTH, QUICK, START, block


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
def test_what_cannot_be_reached_is_not_a_fault_of_the_data(server: FaultServer, fault: Fault, message: str) -> None:
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
def test_a_server_that_is_down_may_be_tried_again_but_not_a_wrong_object(
    fault: Fault, can_retry: bool, server: FaultServer
) -> None:
    server.reset(fault)
    with pytest.raises(UserError) as caught:
        block(server)
    assert pickle.loads(pickle.dumps(caught.value)).can_retry == can_retry  # as it comes from a reader process


def test_a_query_reaches_the_server_but_no_message(
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


def test_a_body_without_a_length_is_refused(server: FaultServer) -> None:
    """Nobody could tell its end from a connection that broke."""
    server.reset(Fault("no length", at=0, times=-1))
    for read in (read_whole, size_of):
        with pytest.raises(UserError, match="does not say how long"):
            read(f"{server.url}/a.tar", QUICK)


@pytest.mark.parametrize("is_known", [False, True])
def test_a_slow_first_answer_is_reported(
    is_known: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.01)
    monkeypatch.setattr(ranges, "_quiet_until_s", {})
    with socket.create_server(("127.0.0.1", 0)) as mute:
        host = f"127.0.0.1:{mute.getsockname()[1]}"
        monkeypatch.setattr(ranges, "_have_answered", {host} if is_known else set())
        with pytest.raises(PassingFault):
            remote.read_range(f"http://{host}/a.tar", 0, 1, Storage(timeout_s=1.0, attempts=1))
    said = f"WARNING: {host} does not answer yet: waiting for it, 1 s at most\n"
    assert capsys.readouterr().err == ("" if is_known else said)
