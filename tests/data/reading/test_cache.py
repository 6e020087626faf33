from __future__ import annotations

import fcntl
import hashlib
import multiprocessing
import os
import random
import resource
import signal
import time
import zlib
from pathlib import Path

import pytest

from maskloom.data.reading import cache as module
from maskloom.data.reading.cache import COUNT, PARTIAL, Cache, entry_name, open_cache
from maskloom.errors import UserError

SIZE = 1000


def block(number: int) -> bytes:
    """Different bytes for each number."""
    return random.Random(number).randbytes(SIZE)


def name(number: int) -> str:
    return entry_name("digest", number, SIZE)


def get(cache: Cache, number: int) -> bytes | None:
    return cache.get(name(number), SIZE, zlib.crc32(block(number)))


def held(folder: Path) -> int:
    """Bytes of everything in the buckets, whole or not."""
    total = 0
    for path in folder.glob("??/*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def counted(folder: Path) -> int:
    return int((folder / COUNT).read_text())


def test_a_block_comes_back_in_every_cache_of_the_folder(tmp_path: Path) -> None:
    Cache(tmp_path / "a" / "b", 10 * SIZE).put(name(1), block(1))
    again = Cache(tmp_path / "a" / "b", 10 * SIZE)
    again.put(name(1), block(1))
    assert held(tmp_path / "a" / "b") == counted(tmp_path / "a" / "b") == SIZE
    assert get(again, 1) == block(1)
    assert get(again, 2) is None
    assert open_cache(str(tmp_path), 5) is open_cache(str(tmp_path), 5)


def test_the_name_is_the_content_and_the_range() -> None:
    names = {entry_name(*given) for given in [("a", 1, 2), ("b", 1, 2), ("a", 12, 2), ("a", 1, 22), ("a:1", 2, 2)]}
    assert len(names) == 5


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10 * SIZE)
    for number in range(10):
        cache.put(name(number), block(number))
        os.utime(tmp_path / name(number)[:2] / name(number)[2:], (number, number))
    assert get(cache, 0) == block(0)  # a hit: now the newest
    cache.put(name(10), block(10))
    # Room for the new block and a tenth of the bound: two blocks go, the two that were used longest ago.
    assert [number for number in range(11) if get(cache, number) is None] == [1, 2]
    assert held(tmp_path) == counted(tmp_path) == 9 * SIZE


def test_one_insert_in_many_walks_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path, 100 * SIZE)
    walks = []
    original = Cache._make_room
    monkeypatch.setattr(Cache, "_make_room", lambda self, size: (walks.append(1), original(self, size))[1])
    for number in range(300):
        cache.put(name(number), block(number))
    # One at the start, which knows no count; then each frees a tenth of the bound: 10 blocks.
    assert len(walks) <= 1 + 200 // 10
    assert held(tmp_path) <= 100 * SIZE


@pytest.mark.parametrize("damage", ["flip", "short", "long", "empty"])
def test_a_damaged_block_is_dropped_and_can_be_kept_again(tmp_path: Path, damage: str) -> None:
    cache = Cache(tmp_path, 10 * SIZE)
    cache.put(name(1), block(1))
    path = tmp_path / name(1)[:2] / name(1)[2:]
    whole = path.read_bytes()
    flipped = bytes([whole[0] ^ 1]) + whole[1:]
    path.write_bytes({"flip": flipped, "short": whole[:-1], "long": whole + b"x", "empty": b""}[damage])
    assert get(cache, 1) is None
    assert not path.exists()
    cache.put(name(1), block(1))
    assert get(cache, 1) == block(1)


def test_a_block_beyond_the_bound_is_not_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path, SIZE - 1)
    cache.put(name(1), block(1))
    assert get(cache, 1) is None
    assert cache.is_written


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="is a file, or lies below one"):
            Cache(path, SIZE)


def test_other_files_in_the_folder_are_never_removed(tmp_path: Path) -> None:
    others = [tmp_path / "thesis.tex", tmp_path / "ab" / "thesis.tex", tmp_path / "photos" / ("a" * 62)]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(block(0))
    cache = Cache(tmp_path, 2 * SIZE)
    for number in range(20):
        cache.put(name(number), block(number))
    assert [path.read_bytes() for path in others] == [block(0)] * 3


def test_the_umask_says_who_may_read(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        Cache(tmp_path / "cache", 10 * SIZE).put(name(1), block(1))
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert modes == {0o640}


def test_a_folder_that_everybody_may_write_into_is_refused(tmp_path: Path) -> None:
    """Blocks are checked by their CRC-32, which says nothing against somebody who wants to change them."""
    tmp_path.chmod(0o1777)
    with pytest.raises(
        UserError, match=r"every user may write into .*: set data\.storage\.cache to a folder of your own"
    ):
        Cache(tmp_path, SIZE)


def test_a_link_in_the_place_of_the_count_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("precious")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / COUNT).symlink_to(tmp_path / "theirs")
    with pytest.raises(UserError, match="is a link"):
        Cache(tmp_path / "cache", 10 * SIZE).put(name(1), block(1))
    assert (tmp_path / "theirs").read_text() == "precious"


def _write_beyond_the_limit(folder: Path, sender) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, SIZE // 2))
    warnings: list[str] = []
    module.warn = warnings.append
    cache = Cache(folder, 10 * SIZE)
    for number in range(5):
        cache.put(name(number), block(number))
    sender.send((warnings, get(cache, 100), cache.is_written))


def test_a_disk_that_is_full_ends_the_writing_with_one_warning(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: writing fails in the same place."""
    Cache(tmp_path, 10 * SIZE).put(name(100), block(100))
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_write_beyond_the_limit, args=(tmp_path, sender))
    child.start()
    warnings, found, is_written = receiver.recv()
    child.join()
    assert len(warnings) == 1
    assert "File too large" in warnings[0]
    assert "keeps no more blocks" in warnings[0]
    assert found == block(100), "what is there can still be read"
    assert not is_written
    assert not list(tmp_path.rglob(f"*{PARTIAL}"))


def test_a_folder_that_cannot_be_made_is_a_warning(capfd: pytest.CaptureFixture[str]) -> None:
    cache = Cache(Path("/proc/maskloom"), 10 * SIZE)
    cache.put(name(1), block(1))
    assert get(cache, 1) is None
    assert capfd.readouterr().err.count("WARNING: the cache /proc/maskloom cannot be written") == 1


def test_temporaries_of_the_living_stay_and_those_of_the_dead_go(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10 * SIZE)
    cache.put(name(1), block(1))
    bucket = tmp_path / name(1)[:2]
    for who in ("dead", "living"):
        (bucket / f"{'0' * 62}.{who}{PARTIAL}").write_bytes(bytes(2 * SIZE))
    with (bucket / f"{'0' * 62}.living{PARTIAL}").open() as living:
        fcntl.flock(living, fcntl.LOCK_EX)
        (tmp_path / COUNT).unlink()  # the next insert walks
        cache.put(name(2), block(2))
        assert [path.name.split(".")[1] for path in bucket.glob(f"*{PARTIAL}")] == ["living"]
        assert counted(tmp_path) == 4 * SIZE


def _hammer(folder: Path, bound: int, seed: int, inserts: int) -> None:
    """Reads and writes of blocks that others read and write too; leaves with 1 at a wrong byte."""
    rng = random.Random(seed)
    cache = Cache(folder, bound)
    for _ in range(inserts):
        number = rng.randrange(60)
        found = get(cache, number)
        if found is None:
            cache.put(name(number), block(number))
        elif found != block(number):
            os._exit(1)
    os._exit(0 if cache.is_written else 2)


def test_many_processes_share_one_small_cache(tmp_path: Path) -> None:
    bound = 20 * SIZE
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_hammer, args=(tmp_path, bound, seed, 300)) for seed in range(8)]
    for child in children:
        child.start()
    while any(child.is_alive() for child in children):
        with (tmp_path / COUNT).open("a") as lock:  # nothing comes or goes while it is held
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert held(tmp_path) <= bound
        time.sleep(0.005)
    assert [child.exitcode for child in children] == [0] * 8
    assert held(tmp_path) <= counted(tmp_path) <= bound
    assert not list(tmp_path.rglob(f"*{PARTIAL}"))


def test_kill_at_any_moment_leaves_a_cache_that_works(tmp_path: Path) -> None:
    bound = 20 * SIZE
    context = multiprocessing.get_context("fork")
    rng = random.Random(5)
    for seed in range(40):
        child = context.Process(target=_hammer, args=(tmp_path, bound, seed, 10**9))
        child.start()
        time.sleep(rng.uniform(0.0, 0.02))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert held(tmp_path) <= bound
    cache = Cache(tmp_path, bound)
    for path in tmp_path.glob("??/*"):
        if not path.name.endswith(PARTIAL):
            assert hashlib.sha256(path.read_bytes()).hexdigest() in digests(), "a block that is there is whole"
    for number in range(100, 150):  # more than the bound: the folder is walked
        cache.put(name(number), block(number))
        assert get(cache, number) == block(number)
    assert not list(tmp_path.rglob(f"*{PARTIAL}"))
    assert held(tmp_path) <= counted(tmp_path) <= bound


def digests() -> set[str]:
    return {hashlib.sha256(block(number)).hexdigest() for number in range(60)}
