"""The loop that reads an object whole, over every fault that passes."""

from __future__ import annotations

import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from maskloom.config import Storage
from maskloom.data.reading import ranges, remote
from maskloom.data.reading.storage import fetch, open_range, read_whole, size_of
from maskloom.errors import DataFault, UserError
from tests.fault_server import Fault, FaultServer

from .serving import CONTENT, CRC32, LENGTH, QUICK, START, block


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


def test_another_version_with_the_same_bytes_is_reported_once(
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


def test_an_object_with_more_bytes_than_it_may_have_is_refused(server: FaultServer, tmp_path: Path) -> None:
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


def test_a_wait_between_attempts_is_reported_once(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(remote, "SAID_WAIT_S", 0.0)
    monkeypatch.setattr(ranges, "_quiet_until_s", {})
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 100.0)
    # The second wait begins within the first.
    monkeypatch.setattr(remote, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: None))
    server.reset(Fault("status", at=START, times=2))
    block(server, Storage(timeout_s=100.0, attempts=3))
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"WARNING: {server.url}/a.tar cannot be read: ")
    assert said.endswith("; attempt 1 of 3, the next in 100 s")
