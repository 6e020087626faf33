"""One run a folder, also where the file system knows no locks."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from maskloom.errors import UserError
from maskloom.train import run_lock
from maskloom.train.run_lock import InUse, RunLock, holder_of, named_holder, refuse_in_use


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
@pytest.mark.parametrize("opens", [lambda folder: RunLock(folder).release(), holder_of])
def test_another_machine_that_is_silent_is_gone(
    opens: Callable[[Path], object], age_s: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".lock").write_text("process 7 on elsewhere")
    touched = (tmp_path / ".lock").stat().st_mtime - age_s
    os.utime(tmp_path / ".lock", (touched, touched))
    waited: list[float] = []
    monkeypatch.setattr(run_lock.time, "sleep", lambda seconds: waited.append(seconds))
    assert opens(tmp_path) is None
    assert bool(waited) == (age_s == 0), "one looks only at a lock that was touched a moment ago"


def test_a_look_names_the_holder_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock.sys, "orig_argv", ["python", "-m", "maskloom.train", "a b.yaml", "run_dir=\x1b[31m"])
    assert holder_of(tmp_path / "none") is None
    assert not (tmp_path / "none").exists()
    held = RunLock(tmp_path, "token")
    written = (tmp_path / ".lock").stat()
    holder = holder_of(tmp_path)
    assert holder is not None
    assert (holder.pid, holder.host, holder.start) == (os.getpid(), socket.gethostname(), "token")
    assert re.fullmatch(
        rf"process {os.getpid()} on \S+ since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC \(python -m maskloom.train 'a b.yaml' "
        rf"'run_dir=\\x1b\[31m'\)",
        str(holder),
    )
    after = (tmp_path / ".lock").stat()
    assert (written.st_mtime_ns, written.st_size) == (after.st_mtime_ns, after.st_size)
    with pytest.raises(InUse, match=re.escape(f"ask it to stop with `touch {tmp_path}/stop`")) as error:
        refuse_in_use(tmp_path)
    assert error.value.can_retry
    held.release()
    assert holder_of(tmp_path) is None
    refuse_in_use(tmp_path)


def test_whoever_only_looks_keeps_nobody_out(tmp_path: Path) -> None:
    RunLock(tmp_path).release()
    with (tmp_path / ".lock").open() as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        timer = threading.Timer(run_lock.MOMENT_S / 3, fcntl.flock, (look, fcntl.LOCK_UN))
        timer.start()
        RunLock(tmp_path).release()
        timer.join()


def test_the_lock_that_a_file_server_keeps_for_a_machine_that_is_gone_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "MOMENT_S", 0.1)
    lock = tmp_path / ".lock"
    lock.write_text("process 7 on elsewhere")
    os.utime(lock, (0, 0))
    with lock.open() as kept:
        fcntl.flock(kept, fcntl.LOCK_EX)
        assert holder_of(tmp_path) is None, "its machine is silent"
        monkeypatch.setattr(run_lock, "KEPT_S", 0.3)
        with pytest.raises(InUse, match="in use by process 7 on elsewhere"):
            RunLock(tmp_path)
        monkeypatch.setattr(run_lock, "KEPT_S", 60.0)
        timer = threading.Timer(0.5, fcntl.flock, (kept, fcntl.LOCK_UN))
        timer.start()
        RunLock(tmp_path).release()
        timer.join()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("process 7 on node9", "process 7 on node9"),
        ("process 7 on node9\nand more", "process 7 on node9"),
        ("process 7 on node9\nsince then\nstart x", "process 7 on node9 since then"),
        ("process 7 on node9\ncommand a\x1b[31mb", "process 7 on node9"),
        ("process 0 on node9", None),
        ("process 99999999999 on node9", None),
        ("process ٣ on node9", None),
        ("process 7 on a\x1bb", None),
        ("process 7", None),
        ("", None),
    ],
)
def test_what_a_lock_file_says_is_read_with_care(text: str, said: str | None, tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text(text)
    holder = named_holder(tmp_path / ".lock")
    assert (str(holder) if holder else None) == said


def test_a_lock_without_a_name_is_of_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "MOMENT_S", 0.1)
    with (tmp_path / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InUse, match="is in use by another process: wait"):
            RunLock(tmp_path)
        assert str(holder_of(tmp_path)) == "another process"
