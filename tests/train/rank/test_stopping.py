"""Requests to stop: signals, also while the main thread waits in foreign code, and the stop file."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from maskloom.train.rank import stopping
from maskloom.train.rank.stopping import Requests, read_stop_file


@pytest.fixture
def requests() -> Iterator[Requests]:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    with Requests({}) as requests:
        yield requests
    signal.signal(signal.SIGHUP, before)


def test_under_nohup_a_hangup_means_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Requests({}) as requests:
        os.kill(os.getpid(), signal.SIGHUP)
        requests.wait(0.1)
        assert requests.reason is None
    assert signal.signal(signal.SIGHUP, before) == signal.SIG_IGN


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_a_request(number: signal.Signals, requests: Requests) -> None:
    requests.wait(0)
    assert requests.reason is None
    os.kill(os.getpid(), number)
    requests.wait(5)
    assert requests.reason == number.name
    assert not requests.insists


def test_the_first_reason_stays(requests: Requests) -> None:
    requests.ask("maintenance")
    os.kill(os.getpid(), signal.SIGTERM)
    requests.wait(5)
    assert requests.reason == "maintenance"


def test_usr1_means_nothing(requests: Requests) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)
    requests.wait(0.1)
    assert requests.reason is None


def test_a_second_interrupt_insists_but_not_an_echo(requests: Requests, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "SECOND_INTERRUPT_S", 0.2)
    for _ in range(2):  # the terminal's, and the launcher's
        os.kill(os.getpid(), signal.SIGINT)
        requests.wait(5)
    monkeypatch.setattr(stopping, "SECOND_INTERRUPT_S", 3600)
    os.kill(os.getpid(), signal.SIGINT)
    requests.wait(5)
    assert not requests.insists
    monkeypatch.setattr(stopping, "SECOND_INTERRUPT_S", 0.2)
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGINT)
    requests.wait(5)
    assert requests.insists


def test_handlers_are_put_back() -> None:
    before = {number: signal.getsignal(number) for number in (*stopping.STOP_SIGNALS, signal.SIGUSR1)}
    with Requests({}):
        assert signal.getsignal(signal.SIGTERM) != before[signal.SIGTERM]
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_stop_file_has_a_reason(tmp_path: Path) -> None:
    assert read_stop_file(tmp_path) is None
    (tmp_path / "stop").write_text("")
    assert read_stop_file(tmp_path) == "no text in it"
    (tmp_path / "stop").write_text("maintenance\n")
    assert read_stop_file(tmp_path) == "maintenance"
    (tmp_path / "stop").write_text("x" * 10_000)
    assert read_stop_file(tmp_path) == "x" * 2000


def test_a_stop_file_that_may_not_be_read_is_a_request_and_a_folder_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stop").mkdir()
    assert read_stop_file(tmp_path) is None
    (tmp_path / "stop").rmdir()
    os.mkfifo(tmp_path / "stop")
    assert read_stop_file(tmp_path) is None
    (tmp_path / "stop").unlink()
    (tmp_path / "stop").touch()
    monkeypatch.setattr(Path, "open", Mock(side_effect=PermissionError))  # root may read everything
    assert read_stop_file(tmp_path) == "its text cannot be read"
