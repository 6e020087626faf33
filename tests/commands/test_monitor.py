"""`maskloom monitor`: TensorBoard answers on this machine, and listens for no other."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from maskloom.world import is_loopback

from .conftest import Command


def addresses(process: psutil.Process) -> set[str]:
    """What the process and those below it (a reader of event files) listen on."""
    connections = [item for one in (process, *process.children(recursive=True)) for item in one.net_connections("inet")]
    return {item.laddr.ip for item in connections if item.status == psutil.CONN_LISTEN}


def test_tensorboard_answers_on_loopback_and_ends_with_its_process(trained_run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "maskloom.cli", "monitor", str(trained_run), "--port", "0"]
    with (tmp_path / "output.log").open("w") as log:
        started = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        process, deadline_s = psutil.Process(started.pid), time.monotonic() + 120
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)/", (tmp_path / "output.log").read_text())):
            assert started.poll() is None and time.monotonic() < deadline_s, (tmp_path / "output.log").read_text()
            time.sleep(0.2)
        all_of_it = [process, *process.children(recursive=True)]
        assert addresses(process) <= {"127.0.0.1", "::1"}
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(found[0], timeout=60) as answer:
            assert answer.status == 200
            assert b"TensorBoard" in answer.read()
    finally:
        started.terminate()
        started.wait(60)
    _, alive = psutil.wait_procs(all_of_it, timeout=60)
    assert not alive


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "128.0.0.1"])
def test_an_address_that_others_reach_is_refused(
    host: str, tmp_path: Path, fails: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("os.execv")  # would listen there
    message = fails("monitor", tmp_path, "--host", host)
    assert f"--host {host} is an address that other machines reach" in message
    assert "--allow-remote" in message


def test_what_is_not_a_folder_is_refused(tmp_path: Path, fails: Command) -> None:
    assert "no run directory" in fails("monitor", tmp_path / "none")


def test_loopback_is_an_address_not_a_name_that_looks_like_one() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("127.0.0.1.example.org", "localhost.example.org", "")))
