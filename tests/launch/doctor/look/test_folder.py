"""The run's folder and its lock."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from maskloom.launch.doctor.facts import Request
from maskloom.launch.doctor.look.folder import lock_holder, look_at_folder, nearest
from tests.waiting import PATIENCE_S


def test_the_folder_of_a_run(tmp_path: Path) -> None:
    token = tmp_path / ".doctor-x"
    token.write_text("word")
    wanted = Request(run_dir=str(tmp_path / "not" / "yet"), token_file=str(token), token="word")
    found = look_at_folder(wanted)
    assert (found.path, found.sees_token, found.fault) == (str(tmp_path), True, None)
    assert found.free_bytes
    token.write_text("another")
    assert look_at_folder(wanted).sees_token is False
    token.unlink()
    assert look_at_folder(wanted).sees_token is False
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    in_the_way = look_at_folder(Request(run_dir=str(tmp_path / "file" / "run")))
    assert str(in_the_way.fault).startswith("[Errno 20] Not a directory")
    assert nearest(Path("/")) == Path("/")


def test_the_lock_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from maskloom.train import run_lock

    monkeypatch.setattr(run_lock, "SILENT_S", 2.0)
    assert lock_holder(tmp_path / "none") is None
    held = run_lock.RunLock(tmp_path)
    assert str(lock_holder(tmp_path)).startswith(f"process {os.getpid()} on {socket.gethostname()} since ")
    held.release()
    assert lock_holder(tmp_path) is None
    lock = tmp_path / ".lock"
    lock.write_text("process 7 on node9")
    assert lock_holder(tmp_path) is None  # killed
    monkeypatch.setattr(run_lock, "SILENT_S", PATIENCE_S)  # the first touch is enough
    is_over = threading.Event()

    def touch() -> None:
        while not is_over.wait(0.2):
            os.utime(lock)

    os.utime(lock)  # else it has been silent for too long before the thread begins

    toucher = threading.Thread(target=touch)  # as a run on another machine whose locks do not come here
    toucher.start()
    try:
        assert lock_holder(tmp_path) == "process 7 on node9"
    finally:
        is_over.set()
        toucher.join()
