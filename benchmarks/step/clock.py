"""Time and memory of steps on a CPU or a GPU, and what the device can do at best."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from maskloom.models.flops import measured_flops
from step.cases import PRECISION, Device

COPIED_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}  # far beyond any cache
COPIES = 10
PRODUCTS = 5  # a busy moment makes the measured matrices small, and their product slow


class Clock:
    """Marks of time between steps. On a GPU they are events of its stream: what ran, not what was launched."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.marks: list[Any] = []  # seconds on a CPU, events on a GPU
        wait(device)
        self.mark()

    def mark(self) -> None:
        if self.device == "cpu":
            self.marks.append(time.perf_counter())
        else:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self.marks.append(event)

    def seconds(self) -> list[float]:
        """Between each mark and the next."""
        wait(self.device)
        if self.device == "cpu":
            return [end - begin for begin, end in itertools.pairwise(self.marks)]
        return [begin.elapsed_time(end) / 1000 for begin, end in itertools.pairwise(self.marks)]


def wait(device: Device) -> None:
    """Until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


class Memory:
    """The most memory since it was made.

    On a GPU that torch's allocator handed out; on a CPU the resident memory of this process beyond what it had at
    `baseline_bytes`, before there was a model.
    """

    def __init__(self, device: Device, baseline_bytes: int) -> None:
        self.device, self.baseline_bytes = device, baseline_bytes
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the kernel begins a new peak

    def peak_bytes(self) -> int:
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated()
        return _status_bytes("VmHWM") - self.baseline_bytes


def resident_bytes() -> int:
    """Memory of this process that is not on the disk."""
    return _status_bytes("VmRSS")


def release(device: Device) -> None:
    """Give back what torch's allocator keeps: other processes are about to use the GPU."""
    if device == "cuda":
        torch.cuda.empty_cache()


def measure_limits(device: Device, threads: int) -> dict[str, float]:
    """What the device reaches at best: FLOP/s of a matrix product, bytes/s of a copy (read and written both counted).

    Args:
        threads: of torch, on a CPU.
    """
    torch.set_num_threads(threads)
    copied_bytes, copy_s = COPIED_BYTES[device], _copy_seconds(device, COPIED_BYTES[device])
    flops = max(measured_flops(torch.device(device), PRECISION[device]) for _ in range(PRODUCTS))
    release(device)
    return {"flops": flops, "bytes_per_s": 2 * copied_bytes / copy_s}


def _copy_seconds(device: Device, size: int) -> float:
    """Of the fastest copy of so many bytes."""
    source = torch.empty(size, dtype=torch.uint8, device=device).fill_(1)
    target = source.clone()  # touches its pages
    return min(_seconds(device, lambda: target.copy_(source)) for _ in range(COPIES))


def _seconds(device: Device, do: Callable[[], object]) -> float:
    clock = Clock(device)
    do()
    clock.mark()
    return clock.seconds()[0]


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024
