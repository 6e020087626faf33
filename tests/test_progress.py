"""What is said to nobody, or to a full disk, ends no program and changes no exit code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from maskloom import progress


def test_what_cannot_be_written_is_not_said_and_still_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(progress, "_readers", [read.append])
    closed, unread = os.pipe()
    os.close(closed)
    with Path("/dev/full").open("w") as full, os.fdopen(unread, "w", buffering=1) as pipe:
        for stream in (full, pipe):
            monkeypatch.setattr("sys.stdout", stream)
            monkeypatch.setattr("sys.stderr", stream)
            progress.say("step 1")
            progress.warn("no room")
            progress.complain("failed")
            progress.flush()
    assert read == ["step 1", "WARNING: no room", "failed"] * 2
