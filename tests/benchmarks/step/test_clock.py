"""Marks of time, peaks of memory, and that the limits of a device are measured in the units that they say."""

from __future__ import annotations

import time

import pytest
import torch
from step import clock


def test_a_clock_has_the_seconds_between_marks() -> None:
    timer = clock.Clock("cpu")
    for _ in range(3):
        time.sleep(0.01)
        timer.mark()
    seconds = timer.seconds()
    assert len(seconds) == 3
    assert min(seconds) >= 0.01


def test_the_peak_is_of_what_came_after_the_start_and_outlives_it() -> None:
    megabytes = 256
    before = clock.resident_bytes()
    memory = clock.Memory("cpu", before)
    held = torch.ones(megabytes << 18)  # of 4 bytes
    del held
    assert (megabytes - 32) << 20 <= memory.peak_bytes() <= (megabytes + 32) << 20
    assert clock.Memory("cpu", before).peak_bytes() < (megabytes - 32) << 20  # given back, and forgotten


def test_limits_come_from_the_fastest_product_and_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    products = iter([1e9, 5e9, 3e9, 2e9, 4e9])
    monkeypatch.setattr(clock, "measured_flops", lambda device, precision: next(products))
    monkeypatch.setattr(clock, "COPIED_BYTES", {"cpu": 1000})
    copies = iter([0.5, 0.25, *[1.0] * 8])
    monkeypatch.setattr(clock, "_seconds", lambda device, do: next(copies))
    assert clock.measure_limits("cpu", threads=1) == {"flops": 5e9, "bytes_per_s": 2 * 1000 / 0.25}


class Stream:
    """Stands for the stream of a GPU: events take 5 ms each, and nothing is known before it is waited for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ms, self.is_done, self.calls = 0.0, False, []
        stream = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at_ms, stream.is_done = stream.now_ms, False
                stream.now_ms += 5.0

            def elapsed_time(self, end: Event) -> float:
                assert stream.is_done
                return end.at_ms - self.at_ms

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: setattr(self, "is_done", True))
        for name in ("reset_peak_memory_stats", "empty_cache"):
            monkeypatch.setattr(torch.cuda, name, lambda name=name: self.calls.append(name))
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 123)


def test_on_a_gpu_time_is_that_of_events_and_memory_the_allocators(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(monkeypatch)
    timer = clock.Clock("cuda")
    timer.mark()
    timer.mark()
    assert timer.seconds() == [0.005, 0.005]
    assert clock.Memory("cuda", baseline_bytes=1 << 40).peak_bytes() == 123
    clock.release("cuda")
    assert stream.calls == ["reset_peak_memory_stats", "empty_cache"]
