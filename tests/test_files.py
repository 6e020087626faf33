from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from maskloom.errors import UserError
from maskloom.files import (
    only_one,
    open_own,
    open_plain,
    private_folder,
    read_plain,
    whole_file,
    whole_folder,
    write_atomically,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", "old")
    write_atomically(tmp_path / "a", "é")
    assert (tmp_path / "a").read_bytes() == "é".encode()
    with pytest.raises(RuntimeError), whole_file(tmp_path / "a", tmp_path / "b") as file:
        file.write(b"half")
        raise RuntimeError
    assert (tmp_path / "a").read_bytes() == "é".encode()
    assert names(tmp_path) == ["a"]


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    with only_one(tmp_path / "lock", "busy") as locked:
        assert locked
        with pytest.raises(UserError, match="busy"), only_one(tmp_path / "lock", "busy"):
            pass
    with only_one(tmp_path / "lock", "busy") as locked:
        assert locked


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int) -> None:
        def flock(file: object, operation: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)

    refuse(errno.ENOLCK)
    with only_one(tmp_path / "lock", "busy") as locked:
        assert not locked
    refuse(errno.EIO)
    with pytest.raises(OSError, match="Input/output"), only_one(tmp_path / "lock", "busy"):
        pass


def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    for error in (OSError(errno.ENOSPC, "No space left on device"), OSError("8 requested and 0 written")):
        with (
            pytest.raises(OSError, match=rf"{error.args[-1]}: .*{tmp_path / 'a'}"),
            whole_file(tmp_path / "a", tmp_path / "b"),
        ):
            raise error
    with pytest.raises(ChildProcessError, match=r"^killed$"), whole_file(tmp_path / "a", tmp_path / "b"):
        raise ChildProcessError("killed")


@pytest.mark.parametrize("name", ["out.more", "o[1]"])
def test_only_what_has_the_very_name_is_removed(tmp_path: Path, name: str) -> None:
    (tmp_path / f".{name}.abcd_123.partial").mkdir()
    (tmp_path / f".{name}.abcd_123.partial" / ".lock").touch()
    with whole_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == [f".{name}.abcd_123.partial", "out"]
    with whole_folder(tmp_path / name):
        pass
    assert names(tmp_path) == sorted([name, "out"])


def test_a_folder_that_cannot_be_filled_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=rf"File too large: .*{tmp_path / 'a'}"), whole_folder(tmp_path / "a"):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    assert names(tmp_path) == []


def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("nowhere")
    with pytest.raises(UserError, match="out is a link that leads nowhere"), whole_folder(tmp_path / "out"):
        pass


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "out") as partial:
        (partial / "a").write_text("half")
        raise RuntimeError
    assert names(tmp_path) == []
    with whole_folder(tmp_path / "out") as partial:
        (partial / "a").write_text("all")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["a"]
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~umask
    with pytest.raises(UserError, match="out exists"), whole_folder(tmp_path / "out"):
        pass


def test_what_a_killed_attempt_left_is_removed_and_what_another_writes_is_not(tmp_path: Path) -> None:
    left, writing = tmp_path / ".out.killed.partial", tmp_path / ".out.alive.partial"
    for folder in (left, writing):
        folder.mkdir()
        (folder / ".lock").touch()
        (folder / "a").write_text("half")
    with (writing / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with whole_folder(tmp_path / "out"):
            pass
    assert names(tmp_path) == [".out.alive.partial", "out"]


def test_a_link_in_the_place_of_a_temporary_is_not_followed(tmp_path: Path) -> None:
    """Its name can be guessed by whoever may write into the folder."""
    theirs = tmp_path / "theirs"
    theirs.write_text("precious")
    (tmp_path / f".status.json.{os.getpid()}").symlink_to(theirs)
    write_atomically(tmp_path / "status.json", "new")
    assert theirs.read_text() == "precious"
    assert (tmp_path / "status.json").read_text() == "new"
    assert not (tmp_path / "status.json").is_symlink()


def test_a_file_of_ours_is_not_a_link(tmp_path: Path) -> None:
    os.close(open_own(tmp_path / "lock"))
    os.close(open_own(tmp_path / "lock"))
    for target in ("theirs", "nowhere"):
        (tmp_path / "theirs").write_text("precious")
        link = tmp_path / f"link to {target}"
        link.symlink_to(tmp_path / target)
        with pytest.raises(UserError, match=f"is a link to {tmp_path / target}: remove it"):
            open_own(link)
    assert (tmp_path / "theirs").read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_of_ours_is_private(tmp_path: Path) -> None:
    private_folder(tmp_path / "a" / "b", "use another")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    with pytest.raises(UserError, match=r"every user may write into .*shared: use another"):
        private_folder(tmp_path / "shared", "use another")
    (tmp_path / "shared").chmod(0o755)
    private_folder(tmp_path / "shared", "use another")


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    if tmp_path.stat().st_uid == 0:
        private_folder(tmp_path, "use another")  # what root made is trusted
        os.chown(tmp_path, 4712, -1)
    with pytest.raises(UserError, match=r"belongs to user .* who could put anything there: use another"):
        private_folder(tmp_path, "use another")


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_umask_decides_who_may_read_and_write(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "file", "a")
        with whole_folder(tmp_path / "folder") as partial:
            (partial / "inside").write_text("a")
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("file", "folder/inside", "folder")]
    assert modes == [0o666 & ~umask, 0o666 & ~umask, 0o777 & ~umask]


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize(
    ("make", "what"),
    [(os.mkfifo, "a named pipe"), (Path.mkdir, "a folder"), (bind, "a socket")],
    ids=["pipe", "folder", "socket"],
)
def test_what_is_not_a_plain_file_is_refused_and_not_waited_for(
    make: Callable[[Path], None], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    path = Path("a")
    make(path)

    def lock() -> None:
        with only_one(path, "busy"):
            pass

    ways: list[Callable[[], object]] = [
        lambda: read_plain(path),
        lambda: open_own(path),
        lambda: open(path, "a", opener=open_plain),  # noqa: SIM115
        lock,
    ]
    for use in ways:
        with pytest.raises(UserError, match=f"^a is not a file: it is {what}. "):
            use()


def test_a_plain_file_is_read_and_a_missing_one_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x\r\n")
    (tmp_path / "link").symlink_to("a")
    assert read_plain(tmp_path / "a") == read_plain(tmp_path / "link") == b"x\r\n"
    with pytest.raises(FileNotFoundError):
        read_plain(tmp_path / "b")
