"""Whether a host can take ranks, and the port that they meet at."""

from __future__ import annotations

import json
import platform
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from maskloom import __version__
from maskloom.launch.hostfile import Host
from maskloom.launch.probe import FIRST_PORT, PORTS, Fitness, free_port, is_free, main, preferred_port, probe_hosts
from maskloom.launch.ssh import FAILED, Ssh

OWN = f"{platform.python_version()} {__version__}"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").touch()
    return tmp_path


def test_a_port_follows_from_the_run_and_the_attempt(tmp_path: Path) -> None:
    ports = [preferred_port(tmp_path / name, attempt) for name in ("a", "b") for attempt in (1, 2)]
    assert ports == [preferred_port(tmp_path / name, attempt) for name in ("a", "b") for attempt in (1, 2)]
    assert len(set(ports)) == 4
    assert all(FIRST_PORT <= port < FIRST_PORT + PORTS for port in ports)


def test_a_taken_port_is_passed_by() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert not is_free(port)
        assert free_port(port) > port


def test_the_host_prints_its_faults(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def faults(versions: str, sees: Path) -> list[str]:
        main(["--slots", "1", "--versions", versions, "--port", "14100", "--sees", str(sees)])
        found = json.loads(capsys.readouterr().out)
        assert found["port"] >= 14100
        return list(found["faults"])

    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert faults(OWN, run) == []
    versions, sees = faults("3.9.0 0.0.1", run / "nowhere")
    assert versions == f"Python and maskloom are {OWN} there, 3.9.0 0.0.1 here"
    assert f"does not see {run / 'nowhere'}" in sees


def test_a_driver_that_answers_for_too_few_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: H100'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    for slots, expected in ((1, []), (2, ["1 GPUs answer, 2 are wanted: GPU 0: H100"])):
        main(["--slots", str(slots), "--versions", OWN, "--port", "14200"])
        assert json.loads(capsys.readouterr().out)["faults"] == expected


class Told(Ssh):
    """Answers for hosts, by their names, instead of ssh."""

    def run(
        self, host: str, module: str, arguments: Sequence[str], timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        assert module == "maskloom.launch.probe"
        assert "--sees" in arguments
        code, output, errors = {
            "well": (0, 'a banner\n{"faults": [], "port": 12001}\n', ""),
            "unfit": (0, '{"faults": ["no disk", "no GPU"], "port": 12001}', ""),
            "away": (FAILED, "", "ssh: no route\n"),
            "other": (1, "", "No module named maskloom\n"),
        }[host]
        return subprocess.CompletedProcess([], code, output, errors)


def test_all_hosts_are_looked_at_in_their_order(run: Path) -> None:
    well, unfit, away, other = probe_hosts(
        [Host(name, 1) for name in ("well", "unfit", "away", "other")], Told(), run, 12000
    )
    assert well == Fitness(None, 12001)
    assert unfit.fault == "no disk; no GPU"
    assert away.fault == "not reached by ssh: ssh: no route"
    assert str(other.fault).endswith("does not run there: No module named maskloom")
