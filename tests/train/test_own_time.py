"""Whose time it is, by a clock of ours."""

from __future__ import annotations

import pytest
import torch

from maskloom.distributed import World
from maskloom.train import own_time, traffic
from maskloom.train.own_time import OwnTime, Spent
from maskloom.train.traffic import Totals, Traffic


class Clock:
    """Stands still until it is moved on."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def perf_counter(self) -> float:
        return self.now_s

    def pass_by(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (own_time, traffic):
        monkeypatch.setattr(module, "time", clock)
    return clock


def take_steps(meter: Traffic, count: int) -> None:
    for _ in range(count):
        meter.begin_step()
        meter.end_step()


def test_waiting_sending_and_pauses_are_not_a_ranks_own(clock: Clock) -> None:
    meter = Traffic()
    mine = OwnTime(meter, World(), torch.device("cpu"))
    take_steps(meter, 4)
    clock.pass_by(2.0)
    mine.waiting(clock.pass_by, 16.0)
    meter.timed(clock.pass_by, 32.0)
    with mine.paused():
        clock.pass_by(64.0)
    spent = mine.take()
    assert spent == Spent(Totals(4, 32.0, {}), 2.0 / 4)
    assert mine.values(spent) == {"straggler_ratio": 1.0, "communication_s": 32.0 / 4, "communication_bytes": 0}
    clock.pass_by(8.0)
    mine.mark()
    take_steps(meter, 1)
    clock.pass_by(3.0)
    assert mine.take() == Spent(Totals(1, 0.0, {}), 3.0)


def test_bytes_are_those_of_a_step() -> None:
    mine = OwnTime(Traffic(), World(), torch.device("cpu"))
    values = mine.values(Spent(Totals(2, 1.0, {"broadcast": 10, "all_reduce": 30}), 0.5))
    assert list(values.items())[2:] == [
        ("communication_bytes", 20.0),
        ("communication_bytes_all_reduce", 15.0),
        ("communication_bytes_broadcast", 5.0),
    ]
