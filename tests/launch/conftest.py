"""Fake ranks: tiny programs in the place of `maskloom.train`, each with its rank in its environment."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.waiting import wait_until


@pytest.fixture
def fake_rank(tmp_path: Path) -> Callable[[str], list[str]]:
    """The command line of a rank that runs some Python; `rank` is its number, `here` a folder, `sys`, `os`, `signal` and
    `time` are imported. It writes its process number into `here/pid-RANK`."""

    def make(body: str) -> list[str]:
        lines = "import os, signal, sys, time\nfrom pathlib import Path\nrank = int(os.environ['RANK'])\n"
        lines += f"here = Path({str(tmp_path)!r})\n"
        program = tmp_path / "rank.py"
        note = "(here / f'.pid-{rank}').write_text(str(os.getpid()))\n(here / f'.pid-{rank}').rename(here / f'pid-{rank}')\n"
        head, mark, rest = body.partition("READY\n")
        program.write_text(lines + (head + note + rest if mark else note + body))
        return [sys.executable, str(program)]

    return make


@pytest.fixture
def rank_pids(tmp_path: Path) -> Callable[[int], list[int]]:
    """The process numbers of so many fake ranks, once all are ready."""

    def read(count: int) -> list[int]:
        files = [tmp_path / f"pid-{rank}" for rank in range(count)]
        wait_until(lambda: all(file.exists() for file in files), "ranks to be ready")
        return [int(file.read_text()) for file in files]

    return read


@pytest.fixture
def started() -> Callable[..., subprocess.Popen[str]]:
    """Start a program that is killed at the end of the test."""
    processes = []

    def start(command: list[str], **options: object) -> subprocess.Popen[str]:
        processes.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)  # type: ignore[call-overload]
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()
