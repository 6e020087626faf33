"""One run a folder, also where the file system knows no locks."""

from __future__ import annotations

import errno
import os
import socket
import threading
from pathlib import Path

import pytest

from maskloom.errors import UserError
from maskloom.train import run_lock
from maskloom.train.run_lock import RunLock


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("maskloom.train.run_lock.fcntl.flock", flock)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "SILENT_S", 3.0)


def as_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: name)


def test_a_lock_is_held_until_it_is_released(tmp_path: Path) -> None:
    held = RunLock(tmp_path / "run")
    with pytest.raises(UserError, match=rf"is in use by process {os.getpid()} on "):
        RunLock(tmp_path / "run")
    held.release()
    assert (tmp_path / "run" / ".lock").read_text() == ""
    RunLock(tmp_path / "run").release()


def test_without_locks_this_machines_process_is_asked(tmp_path: Path, no_locks: None) -> None:
    held = RunLock(tmp_path)
    with pytest.raises(UserError, match="is in use by process"):
        RunLock(tmp_path)
    held.release()
    (tmp_path / ".lock").write_text(f"process {2**22 + 1} on {socket.gethostname()}")  # beyond any process id
    RunLock(tmp_path).release()


def test_another_machine_that_touches_its_lock_lives(
    tmp_path: Path, no_locks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_host("a", monkeypatch)
    held = RunLock(tmp_path)
    ended = threading.Event()

    def touch() -> None:
        while not ended.wait(0.2):
            held.touch()

    thread = threading.Thread(target=touch)
    thread.start()
    as_host("b", monkeypatch)
    try:
        with pytest.raises(UserError, match=r"is in use by process \d+ on a"):
            RunLock(tmp_path)
    finally:
        ended.set()
        thread.join()
    assert "on a" in (tmp_path / ".lock").read_text()


@pytest.mark.parametrize("age_s", [0, 1000])
def test_another_machine_that_is_silent_is_gone(age_s: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".lock").write_text("process 7 on elsewhere")
    touched = (tmp_path / ".lock").stat().st_mtime - age_s
    os.utime(tmp_path / ".lock", (touched, touched))
    waited: list[float] = []
    monkeypatch.setattr(run_lock.time, "sleep", lambda seconds: waited.append(seconds))
    RunLock(tmp_path).release()
    assert bool(waited) == (age_s == 0), "one looks only at a lock that was touched a moment ago"
