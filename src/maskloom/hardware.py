"""What this machine has: cores, free memory and disk, and its GPUs as the driver's own tool tells."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

UNLIMITED = 1 << 60  # a limit of cgroup version 1 that is none


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def free_memory_bytes(root: Path = Path("/")) -> int:
    """Memory that can be taken without swapping: the machine's, or less if a cgroup (of a container, of a Slurm job) has a
    limit. Pages of files do not count as taken. `root` is where proc and sys are mounted."""
    available = UNLIMITED
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) << 10
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            mount, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = mount / path.lstrip("/")
        for level in (folder, *folder.parents):
            available = min(available, _free_in_group(level, *names))
            if level == mount:
                break
    return available


def free_disk_bytes(folder: Path) -> int:
    """Bytes that this user may still write to the file system of `folder`, quotas aside."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _free_in_group(folder: Path, limit: str, usage: str, cache: str) -> int:
    """Bytes that a cgroup has left; UNLIMITED if it has no limit or cannot be read."""
    try:
        most = (folder / limit).read_text().strip()
        if most == "max" or int(most) >= UNLIMITED:
            return UNLIMITED
        taken = int((folder / usage).read_text())
        counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0, int(most) - taken + int(counts.get(cache, 0)))
    except (OSError, ValueError):
        return UNLIMITED


def ask_nvidia_smi(table: str, columns: Sequence[str], timeout_s: float = 60.0) -> list[dict[str, str]]:
    """Rows of one of nvidia-smi's tables, whatever torch can do with the GPUs. None if there is no such tool, it lacks a column,
    or its answer cannot be read.

    Args:
        table: its option, such as `--query-gpu`.
        timeout_s: a driver that hangs does not answer.
    """
    tool = shutil.which("nvidia-smi")
    if not tool:
        return []
    command = [tool, f"{table}={','.join(columns)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=True)
        rows = list(csv.reader(done.stdout.splitlines()))
    except (OSError, subprocess.SubprocessError, csv.Error):
        return []
    return [dict(zip(columns, (cell.strip() for cell in row), strict=True)) for row in rows if len(row) == len(columns)]
