"""Marks of time, peaks of memory, and that the limits of a device are measured in the units that they say."""

from __future__ import annotations

import time

import pytest
import torch

from maskloom.bench import clock


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
    assert clock.limits("cpu") == {"flops": 5e9, "bytes_per_s": 2 * 1000 / 0.25}
