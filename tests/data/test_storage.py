from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maskloom.data.storage import local_path, open_range
from maskloom.errors import UserError

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
    with pytest.raises(UserError, match=r"none\.tar: No such file"):
        open_range(str(tmp_path / "none.tar"), 0, 1, 0)


@pytest.mark.parametrize(("offset", "length"), [(0, len(CONTENT) + 1), (len(CONTENT) - 1, 2), (len(CONTENT), 1)])
def test_a_shard_that_is_too_short_is_named_with_the_place(shard: Path, offset: int, length: int) -> None:
    with pytest.raises(UserError, match=rf"a shard\.tar: {len(CONTENT) - offset} of {length} bytes at offset {offset}"):
        open_range(str(shard), offset, length, 0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 8 * len(CONTENT) - 1))
def test_a_flipped_bit_is_found(tmp_path_factory: pytest.TempPathFactory, bit: int) -> None:
    path = tmp_path_factory.mktemp("flipped") / "x.tar"
    damaged = bytearray(CONTENT)
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"x\.tar: the block at offset 0 .* changed or is damaged"):
        open_range(str(path), 0, len(CONTENT), zlib.crc32(CONTENT))


@pytest.mark.parametrize("scheme", ["pipe", "http", "https", "s3", "gs", "hf", "ftp", "ssh"])
def test_other_schemes_are_refused_by_name(scheme: str) -> None:
    with pytest.raises(UserError, match=f"not '{scheme}:'"):
        open_range(f"{scheme}://host/shard.tar", 0, 1, 0)


def test_a_pipe_is_never_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not 'pipe:'"):
        open_range(f"pipe:touch {tmp_path}/ran", 0, 1, 0)
    assert not (tmp_path / "ran").exists()


def test_a_file_url_names_no_host() -> None:
    assert (
        local_path("file:///data/a%20b.tar") == local_path("file://localhost/data/a%20b.tar") == Path("/data/a b.tar")
    )
    with pytest.raises(UserError, match=r"three slashes: file:///data/a\.tar"):
        local_path("file://data/a.tar")


@pytest.mark.parametrize("path", ["a.tar", "/data/a.tar", "data/10:00.tar", "./10:00.tar", "/data/50%.tar"])
def test_a_plain_path_is_taken_as_it_is(path: str) -> None:
    assert local_path(path) == Path(path)
