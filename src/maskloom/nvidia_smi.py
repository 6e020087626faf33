"""What the driver's own tool knows of this machine's GPUs, whatever torch can do with them."""

from __future__ import annotations

import csv
import shutil
import subprocess
from collections.abc import Sequence


def ask_nvidia_smi(table: str, columns: Sequence[str], timeout_s: float = 60.0) -> list[dict[str, str]]:
    """Rows of one of nvidia-smi's tables. None if there is no such tool, it lacks a column, or its answer cannot be read.

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
