"""The guard finds what it is there for."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from maskloom.errors import UserError

from .harness import INPUTS, Violation, fuzz, guarded


def hang() -> None:
    while True:
        time.sleep(0.01)


def compute() -> None:
    while True:
        pass


def hang_and_catch() -> None:
    try:
        hang()
    except BaseException:
        return


def write(path: Path) -> None:
    path.write_text("x")


def connect() -> None:
    with socket.socket() as client:
        client.connect(("192.0.2.1", 9))  # an address for documentation: nobody has it


class Opened:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.getenv, ("HOME",)


@pytest.mark.parametrize(
    ("act", "what"),
    [
        (hang, "hangs"),
        (compute, "hangs"),
        (hang_and_catch, "hangs"),
        (lambda: write(Path("/tmp/of-a-fuzzer")), "open of /tmp/of-a-fuzzer"),
        (lambda: Path("/tmp/of-a-fuzzer").unlink(), "os.remove"),
        (lambda: subprocess.run([sys.executable, "-c", ""]), "subprocess.Popen"),
        (lambda: os.system("true"), "os.system"),
        (connect, "socket.connect"),
        (lambda: pickle.loads(pickle.dumps(Opened())), "pickle.find_class"),
    ],
)
def test_what_no_input_may_cause_is_refused(act: Callable[[], object], what: str) -> None:
    with pytest.raises(Violation, match=what), guarded(hang_s=0.2):
        act()
    assert not Path("/tmp/of-a-fuzzer").exists()


def test_memory_has_a_bound() -> None:
    with pytest.raises(MemoryError), guarded(memory_bytes=64 << 20):
        bytearray(256 << 20)
    assert len(bytearray(256 << 20)) == 256 << 20  # outside of it there is none


def test_a_parser_may_write_into_its_folder(tmp_path: Path) -> None:
    with guarded(tmp_path):
        write(tmp_path / "file")
        (tmp_path / "file").unlink()
    assert not list(tmp_path.iterdir())


def test_a_parser_that_fails_for_some_inputs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses what is not a size, and forgets that nothing may stand behind the sign."""
    monkeypatch.delenv(INPUTS, raising=False)

    def parse(data: bytes) -> int:
        name, _, number = data.partition(b"=")
        if name != b"size":
            raise UserError("not a size")
        return number[0]

    with pytest.raises(IndexError):
        fuzz(parse, [b"size=12"])
    report = fuzz(lambda data: parse(data + b"0") if b"=" in data else 0, [b"size=12"])
    assert report.read + report.refused == report.inputs >= 500
    assert min(report.read, report.refused) > 50


def test_the_environment_sets_the_number_of_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INPUTS, "50")
    report = fuzz(len, [b"abc"])
    assert (report.inputs, report.refused) == (50, 0)
