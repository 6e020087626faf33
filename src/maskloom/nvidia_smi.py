"""What the driver's own tool knows of this machine's GPUs, whatever torch can do with them."""

from __future__ import annotations

import csv
import shutil
import subprocess


def ask_nvidia_smi(table: str, columns: list[str], names: list[str], timeout_s: float = 60.0) -> list[dict[str, str]]:
    """Rows of one of nvidia-smi's tables; none where there is no nvidia-smi or it knows a column not.

    Args:
        table: its option, such as `--query-gpu`.
        columns: as nvidia-smi calls them; `names` are the keys that they get.
        timeout_s: a driver that hangs does not answer.
    """
    tool = shutil.which("nvidia-smi")
    if not tool:
        return []
    command = [tool, f"{table}={','.join(columns)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [
        dict(zip(names, (cell.strip() for cell in row), strict=True))
        for row in csv.reader(done.stdout.splitlines())
        if len(row) == len(names)
    ]
