from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from maskloom.errors import UserError
from maskloom.files import only_one, whole_file, whole_folder, write_atomically


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
