"""What is said to nobody, or to a full disk, ends no program and changes no exit code; what is shown arrives; and progress is
figures that a person can read."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest

from maskloom import progress
from maskloom.errors import UserError


def test_what_cannot_be_written_is_not_said_and_still_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(progress, "_readers", [read.append])
    closed, unread = os.pipe()
    os.close(closed)
    with Path("/dev/full").open("w") as full, os.fdopen(unread, "w", buffering=1) as pipe:
        closed_by_a_library = io.StringIO()
        closed_by_a_library.close()
        for stream in (full, pipe, closed_by_a_library):
            monkeypatch.setattr("sys.stdout", stream)
            monkeypatch.setattr("sys.stderr", stream)
            progress.say("step 1")
            progress.warn("no room")
            progress.complain("failed")
            progress.flush()
    assert read == ["step 1", "WARNING: no room", "failed"] * 3


MIB = 1 << 20


@pytest.mark.parametrize(
    ("total", "done", "elapsed_s", "line"),
    [
        (20 * MIB, 0, 0.0, "reading: 0%, 0.0 MiB, 0.0 MiB/s, ? left"),
        (20 * MIB, 0, 9.0, "reading: 0%, 0.0 MiB, 0.0 MiB/s, ? left"),
        (20 * MIB, 5 * MIB, 10.0, "reading: 25%, 5.0 MiB, 0.5 MiB/s, 0:30 left"),
        (20 * MIB, 20 * MIB, 10.0, "reading: 100%, 20.0 MiB, 2.0 MiB/s, 0:00 left"),
        (20 * MIB, 25 * MIB, 10.0, "reading: 100%, 25.0 MiB, 2.5 MiB/s, 0:00 left"),  # the total was an estimate
        (0, 5 * MIB, 10.0, "reading: 5.0 MiB, 0.5 MiB/s"),
        (0, 0, 0.0, "reading: 0.0 MiB, 0.0 MiB/s"),
    ],
)
def test_a_line_of_progress(total: float, done: float, elapsed_s: float, line: str) -> None:
    bar = progress.Progress("reading", total, "MiB", MIB)
    bar.done = done
    assert bar.line(elapsed_s) == line


def test_progress_does_not_mix_with_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with progress.Progress("writing", 2, "shards") as bar:
        bar.advance(1)
        bar.advance(1)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert [line.split(",")[:2] for line in lines[:2]] == [
        ["writing: 50%", " 1 shards"],
        ["writing: 100%", " 2 shards"],
    ]


SHOWN = """
import sys
from maskloom.progress import Progress, warn
total, unit, scale, *amounts = sys.argv[1:]
with Progress("work", float(total), unit, float(scale)) as bar:
    bar.bar.mininterval = 0
    for amount in amounts:
        bar.advance(float(amount))
    warn("beware")
"""


@pytest.mark.parametrize("columns", [0, 80, 200])
@pytest.mark.parametrize(
    ("total", "unit", "scale", "amounts", "last"),
    [
        (20000000, "MiB", MIB, [13760841, 6239159], "19.1/19.1 MiB"),
        (20000000, "MiB", MIB, [13760841, 7000000, 9], "19.1/19.1 MiB"),  # more than was estimated
        (20000000, "MiB", MIB, [13760841, -3000000], "10.3/19.1 MiB"),  # a download that begins again
        (1234567, "shards", 1, [1234560, 7], "1,234,567/1,234,567 shards"),
        (0, "MiB", MIB, [13760841], "13.1 MiB"),
    ],
)
def test_a_person_reads_numbers(
    columns: int, total: int, unit: str, scale: int, amounts: list[float], last: str
) -> None:
    shown = on_a_terminal([sys.executable, "-c", SHOWN, *map(str, (total, unit, scale, *amounts))], columns)
    assert "Warning: " not in shown
    assert last in [part for part in shown.split("\r") if "work" in part][-1]
    assert not re.search(r"\d\.\d{3}", shown)
    assert max(len(part.strip()) for part in re.split("[\r\n]", shown)) <= (columns or progress.COLUMNS)
    assert "WARNING: beware" in re.split("[\r\n]+", re.sub(r"\x1b\[[0-9]*m", "", shown))  # a line of its own


def on_a_terminal(command: list[str], columns: int) -> str:
    """What a command writes on a terminal of so many columns (0: it does not say)."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24 if columns else 0, columns, 0, 0))
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its) as process:
        os.close(its)
        written = b""
        with contextlib.suppress(OSError):  # its end is closed
            while part := os.read(ours, 65536):
                written += part
        os.close(ours)
    assert process.returncode == 0, written.decode()
    return written.decode()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_result_must_arrive(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.StringIO):
        def flush(self) -> None:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr("sys.stdout", Broken())
    with pytest.raises(UserError, match=f"standard output cannot be written: {os.strerror(number)}"):
        progress.show("the digest")
    progress.say("a message need not")


def test_json_is_valid_whatever_it_holds(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "a secret value")
    held = {
        "loss": [math.nan, math.inf, 1.5],
        "reason": 'no answer from https://user@host/x?key="1": \x7f \x1b \u202e \ud800',
        "a secret value": "with a secret value",
    }
    progress.show_json(held)
    shown = capsys.readouterr().out
    assert shown.isascii() and not {"\x7f", "\x1b"} & set(shown)
    assert json.loads(shown, parse_constant=pytest.fail) == {
        "loss": [None, None, 1.5],
        "reason": 'no answer from https://host/x"1": \x7f \x1b \u202e \ud800',
        "<hidden>": "with <hidden>",
    }


def test_what_takes_long_is_noted_once_and_what_does_not_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    noted = threading.Event()
    with progress.noted_when_slow(noted.set):
        pass
    assert not noted.is_set()
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.01)
    with progress.noted_when_slow(noted.set):
        assert noted.wait(60)
