from __future__ import annotations

import errno
import os
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maskloom.config import Storage
from maskloom.data.reading import remote, storage
from maskloom.data.reading.storage import fetch, is_remote, join, list_tars, local_path, open_range, read_whole, size_of
from maskloom.errors import DataFault, PassingFault, UserError
from tests.fault_server import FaultServer

from .serving import QUICK

CONTENT = bytes(range(256)) * 3


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("storage") / "a shard.tar"
    path.write_bytes(CONTENT)
    return path


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(CONTENT)), st.integers(0, len(CONTENT)), st.booleans())
def test_a_range_is_the_bytes_that_stand_there(shard: Path, offset: int, length: int, as_url: bool) -> None:
    length = min(length, len(CONTENT) - offset)
    expected = CONTENT[offset : offset + length]
    url = shard.as_uri() if as_url else str(shard)  # the URL has the name's space as %20
    assert open_range(url, offset, length, zlib.crc32(expected)).read() == expected


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    for url in (str(tmp_path / "none.tar"), (tmp_path / "none.tar").as_uri()):
        for read in (lambda url: open_range(url, 0, 1, 0), lambda url: size_of(url, Storage())):
            with pytest.raises(DataFault, match=r"none\.tar: No such file") as caught:
                read(url)
            assert caught.value.kind == "missing"


def test_a_file_that_cannot_be_read_is_not_a_fault_of_the_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Is a directory") as caught:
        open_range(str(tmp_path), 0, 1, 0)
    assert not isinstance(caught.value, DataFault)
    assert not caught.value.can_retry


def test_a_disk_that_does_not_answer_may_do_so_at_another_attempt(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(PassingFault, match="Stale file handle"):
        open_range(str(shard), 0, 1, 0)


@pytest.mark.parametrize(("offset", "length"), [(0, len(CONTENT) + 1), (len(CONTENT) - 1, 2), (len(CONTENT), 1)])
def test_a_shard_that_is_too_short_is_named_with_the_place(shard: Path, offset: int, length: int) -> None:
    where = rf"a shard\.tar: {len(CONTENT) - offset} of {length} bytes at offset {offset}"
    with pytest.raises(DataFault, match=where) as caught:
        open_range(str(shard), offset, length, 0)
    assert (caught.value.kind, caught.value.shard, caught.value.offset) == ("truncated", str(shard), offset)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 8 * len(CONTENT) - 1))
def test_a_flipped_bit_is_found(tmp_path_factory: pytest.TempPathFactory, bit: int) -> None:
    path = tmp_path_factory.mktemp("flipped") / "x.tar"
    damaged = bytearray(CONTENT)
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    with pytest.raises(DataFault, match=r"x\.tar: the block at offset 0 .* changed or is damaged") as caught:
        open_range(str(path), 0, len(CONTENT), zlib.crc32(CONTENT))
    assert caught.value.kind == "checksum"


@pytest.mark.parametrize("scheme", ["pipe", "gs", "ais", "hf", "ftp", "ssh", "htps", "HTTP", "data", "file+http"])
def test_other_schemes_are_refused_by_name(scheme: str) -> None:
    url = f"{scheme}://host/shard.tar"
    readers = (
        lambda: open_range(url, 0, 1, 0),
        lambda: read_whole(url, Storage()),
        lambda: size_of(url, Storage()),
        lambda: is_remote(url),
        lambda: local_path(url),
    )
    for read in readers:
        with pytest.raises(UserError, match=f"not '{scheme}:'".replace("+", r"\+")):
            read()


def test_a_pipe_is_never_run_and_standard_input_never_read(tmp_path: Path) -> None:
    for url in (f"pipe:touch {tmp_path}/ran", f"pipe:curl http://h/ > {tmp_path}/ran"):
        with pytest.raises(UserError, match="not 'pipe:'"):
            open_range(url, 0, 1, 0)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UserError, match="not from standard input"):
        open_range("-", 0, 1, 0)


@pytest.mark.parametrize("scheme", ["http", "https", "s3"])
def test_a_password_in_a_url_is_refused_and_not_repeated(scheme: str) -> None:
    for user in ("ann:SECRET", "SECRET", "ann:SECRET@x"):
        with pytest.raises(UserError, match=f"{scheme}://host/a.tar: .*no user and no password") as caught:
            open_range(f"{scheme}://{user}@host/a.tar", 0, 1, 0)
        assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http:/h/a.tar",
        "http:a.tar",
        "https://",
        "http://h:port/a",
        "http://[::1/a",
        "s3:///key",
        "s3:key",
        "s3://h:9/k",
    ],
)
def test_a_url_without_a_host_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="no host"):
        is_remote(url)


def test_a_file_url_with_a_host_is_refused() -> None:
    assert (
        local_path("file:///data/a%20b.tar") == local_path("file://localhost/data/a%20b.tar") == Path("/data/a b.tar")
    )
    with pytest.raises(UserError, match=r"three slashes: file:///data/a\.tar"):
        local_path("file://data/a.tar")
    with pytest.raises(UserError, match="is not on this machine"):
        local_path("http://h/a.tar")


@pytest.mark.parametrize("path", ["a.tar", "/data/a.tar", "data/10:00.tar", "./10:00.tar", "/data/50%.tar", "./-"])
def test_a_plain_path_is_taken_as_it_is(path: str) -> None:
    assert local_path(path) == Path(path)
    assert not is_remote(path)


def test_local_objects_are_read_whole_and_copied(shard: Path, tmp_path: Path) -> None:
    for url in (str(shard), shard.as_uri()):
        assert read_whole(url, Storage()) == CONTENT
        assert size_of(url, Storage()) == len(CONTENT)
        counts: list[int] = []
        fetch(url, tmp_path / "copy", Storage(), counts.append)
        assert (tmp_path / "copy").read_bytes() == CONTENT
        assert counts == [len(CONTENT)]
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_only_s3_has_a_listing(tmp_path: Path) -> None:
    for url in ("http://h/c/?SECRET", str(tmp_path)):
        with pytest.raises(UserError, match="name the tars") as caught:
            list_tars(url, Storage())
        assert "SECRET" not in str(caught.value)


def test_a_block_is_fetched_once_and_then_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the shard's digest: the same block under another URL, as from a mirror, is a hit; another shard's is none."""
    asked: list[str] = []

    def read_range(url: str, offset: int, length: int, settings: Storage) -> tuple[bytes, str]:
        asked.append(url)
        return CONTENT[offset : offset + length], "v1"

    monkeypatch.setattr(remote, "read_range", read_range)
    monkeypatch.setattr(storage, "_first_versions", {})
    kept = Storage(cache=str(tmp_path / "cache"), cache_bytes=1 << 20)
    crc32 = zlib.crc32(CONTENT[10:110])

    def read(host: str, digest: str, settings: Storage = kept) -> None:
        assert open_range(f"http://{host}/a.tar", 10, 100, crc32, digest, settings).read() == CONTENT[10:110]

    read("a", "d1")
    read("a", "d1")
    read("b", "d1")
    assert asked == ["http://a/a.tar"]
    read("b", "d2")
    read("b", "")
    read("b", "d1", Storage())
    assert asked[1:] == ["http://b/a.tar"] * 3


def test_a_damaged_block_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "read_range", lambda *_: (b"x" * 100, "v1"))
    monkeypatch.setattr(storage, "_first_versions", {})
    kept = Storage(cache=str(tmp_path / "cache"))
    with pytest.raises(DataFault):
        open_range("http://a/a.tar", 0, 100, zlib.crc32(CONTENT[:100]), "d1", kept)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


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
