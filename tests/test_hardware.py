"""Memory that a cgroup leaves free; what nvidia-smi may answer: rows, nothing, what is not a table."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskloom.hardware import UNLIMITED, ask_nvidia_smi, free_memory_bytes

ROW = {"name": "NVIDIA H200", "driver_version": "580.65.06"}


@pytest.mark.parametrize(
    ("script", "rows"),
    [
        ("echo 'NVIDIA H200, 580.65.06'", [ROW]),
        ("echo 'NVIDIA H200, 580.65.06'; echo 'of one column'", [ROW]),
        ("printf 'H\\377\\376, 580\\n'", [{"name": "H\ufffd\ufffd", "driver_version": "580"}]),
        ("head -c 300000 /dev/zero | tr '\\0' x; echo ', 580'", []),  # a cell longer than csv takes
        ("echo 'NVIDIA H200, 580.65.06'; exit 9", []),
        ("sleep 60", []),
    ],
)
def test_answers(script: str, rows: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask_nvidia_smi("--query-gpu", ["name", "driver_version"], 2.0) == rows


def test_there_may_be_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask_nvidia_smi("--query-gpu", ["name"]) == []


def test_a_containers_limit_of_memory_counts(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    write("proc/meminfo", "MemTotal: 4000 kB\nMemAvailable:   2000 kB\n")
    write("proc/self/cgroup", "0::/a/b\n")
    assert free_memory_bytes(tmp_path) == 2000 << 10
    write("sys/fs/cgroup/a/memory.max", "1000000\n")
    write("sys/fs/cgroup/a/memory.current", "700000\n")
    write("sys/fs/cgroup/a/memory.stat", "anon 100\ninactive_file 50000\n")
    write("sys/fs/cgroup/a/b/memory.max", "max\n")
    assert free_memory_bytes(tmp_path) == 350000
    write("proc/self/cgroup", "5:memory,cpu:/job\n3:pids:/job\n")
    write("sys/fs/cgroup/memory/job/memory.limit_in_bytes", f"{UNLIMITED * 8}\n")
    assert free_memory_bytes(tmp_path) == 2000 << 10
    write("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "500000\n")
    write("sys/fs/cgroup/memory/job/memory.usage_in_bytes", "400000\n")
    write("sys/fs/cgroup/memory/job/memory.stat", "total_inactive_file 1\n")
    assert free_memory_bytes(tmp_path) == 100001
    assert free_memory_bytes() > 0
