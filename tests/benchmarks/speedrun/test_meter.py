"""What counts as a CPU-second of training."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys

import pytest
from speedrun.meter import VARIABLE, Meter, may_train, spent_s


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def spend(self, seconds: float) -> None:
        self.now_s += seconds


def test_what_is_excluded_does_not_count() -> None:
    clock = Clock()
    meter = Meter(clock)
    evaluate = meter.excluding(clock.spend)
    clock.spend(5.0)
    meter.begin()
    clock.spend(2.0)
    evaluate(40.0)
    clock.spend(1.0)
    assert meter.read_s() == 3.0


def test_what_fails_is_excluded_too() -> None:
    clock = Clock()
    meter = Meter(clock)
    meter.begin()

    def fail() -> None:
        clock.spend(7.0)
        raise ValueError("no room")

    with pytest.raises(ValueError, match="no room"):
        meter.excluding(fail)()
    assert meter.read_s() == 0.0


def test_children_count_while_they_live_and_after() -> None:
    """A child spends a second of CPU time; it says so, waits, and ends."""
    code = "import time\nwhile time.process_time() < 1: pass\nprint(flush=True)\ninput()"
    before_s = spent_s()
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert spent_s() - before_s > 0.9  # the kernel counts in ticks of 10 ms
        child.communicate(b"\n")
    assert spent_s() - before_s > 0.9


def test_only_a_speedrun_is_metered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert not may_train()
    monkeypatch.setenv(VARIABLE, os.devnull)
    assert may_train()
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: "the rank")
    assert not may_train()  # a reader of a rank
