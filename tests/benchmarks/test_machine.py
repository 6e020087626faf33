"""What a result is stamped with."""

from __future__ import annotations

import re
from pathlib import Path

import machine
import pytest


def test_the_commit_is_gits_or_what_the_caller_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MASKLOOM_COMMIT", "0123456789ab")
    assert machine.commit() != "0123456789ab" or not (machine.SOURCE.parents[1] / ".git").exists()
    monkeypatch.setattr(machine, "SOURCE", tmp_path)  # no checkout
    assert machine.commit() == "0123456789ab"
    monkeypatch.setenv("MASKLOOM_COMMIT", "")
    assert machine.commit() is None


def test_a_stamp_says_when_where_and_with_what() -> None:
    stamp = machine.stamp("benchmarks/step.py", "cpu", ["torch", "no-such-package"])
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00$", stamp["date"])
    assert stamp["gpu"] is None
    assert stamp["cores"] > 0
    assert list(stamp["versions"]) == ["torch"]
