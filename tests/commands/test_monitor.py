"""`maskloom monitor`: TensorBoard answers on this machine, and listens for no other."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import psutil
import pytest
from tensorboard.program import TensorBoardPortInUseError

from maskloom.commands import monitor
from maskloom.tags import PINNED
from maskloom.viewing import server
from maskloom.world import is_loopback

from .conftest import Command


def addresses(process: psutil.Process) -> set[str]:
    """What the process and those below it (a reader of event files) listen on."""
    connections = [item for one in (process, *process.children(recursive=True)) for item in one.net_connections("inet")]
    return {item.laddr.ip for item in connections if item.status == psutil.CONN_LISTEN}


def test_it_answers_on_loopback_and_leaves_nothing_behind(trained_run: Path, tmp_path: Path) -> None:
    log, temporary = tmp_path / "output.log", tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-m", "maskloom.cli", "monitor", str(trained_run), "--port", "0"]
    with log.open("w") as output:
        environment = {**os.environ, "TMPDIR": str(temporary)}
        started = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        process, deadline_s = psutil.Process(started.pid), time.monotonic() + 120
        while "Ctrl-C" not in log.read_text():
            assert started.poll() is None and time.monotonic() < deadline_s, log.read_text()
            time.sleep(0.1)
        all_of_it = [process, *process.children(recursive=True)]
        assert addresses(process) <= {"127.0.0.1", "::1"}
        title, page, _, ssh, _ = log.read_text().splitlines()
        assert title == "TensorBoard shows 1 run: run"
        found = re.fullmatch(r"(http://127\.0\.0\.1:(\d+)/)\?pinnedCards=\S+&smoothing=0", page)
        assert found is not None, page
        assert ssh == f"ssh -N -L {found[2]}:127.0.0.1:{found[2]} {socket.gethostname()}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(found[1], timeout=60) as answer:
            assert answer.status == 200
            assert b"TensorBoard" in answer.read()
        assert list(temporary.iterdir()), "the links"
    finally:
        started.terminate()
        assert started.wait(60) == 128 + signal.SIGTERM
    _, alive = psutil.wait_procs(all_of_it, timeout=60)
    assert not alive
    assert not [path for path in temporary.iterdir() if "monitor" in path.name]


def test_a_port_in_use_is_refused_and_the_usual_one_gives_way(
    trained_run: Path, fails: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_launched", never)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = fails("monitor", trained_run, "--port", port)
        assert f"cannot listen on port {port} of 127.0.0.1" in message
        assert "--port 0" in message
        monkeypatch.setattr(server, "DEFAULT_PORT", port)
        assert server.chosen_port("127.0.0.1", None) not in (0, port)
    assert server.chosen_port("127.0.0.1", port) == port


def test_another_port_is_taken_if_a_program_was_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def launched(folder: Path, host: str, port: int, *_: object) -> str:
        tried.append(port)
        if len(tried) == 1:
            raise TensorBoardPortInUseError("in use")
        return f"http://{host}:{port}/"

    monkeypatch.setattr(server, "_launched", launched)
    monkeypatch.setattr(server, "_wait_for", lambda url: None)
    assert server.serve(tmp_path, "127.0.0.1", 0, "title") == f"http://127.0.0.1:{tried[1]}/"


def never(*_: object) -> str:
    raise AssertionError("it would listen")


def test_the_page_has_pins_and_hides_second_lines_of_several_runs() -> None:
    address = urllib.parse.urlsplit(server.first_page("http://127.0.0.1:6006/", is_several=True))
    asked = dict(urllib.parse.parse_qsl(address.query))
    assert [pin["tag"] for pin in json.loads(asked["pinnedCards"])] == list(PINNED)
    assert asked["smoothing"] == "0"
    names = ["one", "one/held-out", "held-out", "sweep/two", "sweep/two/held-out"]
    assert [name for name in names if re.search(asked["runFilter"], name)] == ["one", "held-out", "sweep/two"]
    assert "runFilter" not in server.first_page("http://127.0.0.1:6006/", is_several=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "128.0.0.1"])
def test_an_address_that_others_reach_is_refused(
    host: str, tmp_path: Path, fails: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "serve", never)
    message = fails("monitor", tmp_path, "--host", host)
    assert f"--host {host} is an address that other machines reach" in message
    assert "--allow-remote" in message


def test_what_is_not_a_folder_is_refused(tmp_path: Path, fails: Command) -> None:
    assert "no run directory" in fails("monitor", tmp_path / "none")
    assert "no run in" in fails("monitor", tmp_path)


def test_loopback_is_an_address_not_a_name_that_looks_like_one() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("127.0.0.1.example.org", "localhost.example.org", "")))
