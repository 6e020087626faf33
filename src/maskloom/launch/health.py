"""Whether runs live, for the health check of a container: `maskloom status --healthy`.

A rank ends itself if its main thread hangs (`train/rank/watch.py`), and its container ends with it. What it cannot do is end a
process that stands still as a whole: one that is suspended, that holds the interpreter's lock in foreign code, or that cannot
write any more. Then the run's status.json is not written either, and its age shows it.

A run that ended is not ill: the exit code of its process says how it ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from maskloom.errors import UserError
from maskloom.progress import duration
from maskloom.status import SILENT_S, Status, read_status

BELOW = ("*/status.json", "*/*/status.json")
"""Where the runs of a folder are looked for."""


def running(folder: Path, host: str) -> dict[Path, Status]:
    """The runs whose status says that they are running, by folder.

    Args:
        folder: of a run, or of several. If of several, only those with ranks on `host` count: others may share the folder.
        host: name of this machine or container.

    Raises:
        UserError: there is no such folder, or the status of the one run is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder} of a run or of runs")
    own = read_status(folder)
    found = {folder: own} if own else {run: status for run, status in _below(folder) if host in status.hosts}
    return {run: status for run, status in found.items() if status.state == "running"}


def silent(runs: dict[Path, Status], now_unix_s: float) -> list[str]:
    """A line for each run that shows no sign of life."""
    ages_s = {run: now_unix_s - status.updated_unix_s for run, status in runs.items()}
    return [f"{run}: no sign of life for {duration(age_s)}" for run, age_s in ages_s.items() if age_s > SILENT_S]


def _below(folder: Path) -> Iterator[tuple[Path, Status]]:
    for file in sorted(file for pattern in BELOW for file in folder.glob(pattern)):
        try:
            status = read_status(file.parent)
        except (UserError, OSError):  # of a run that may be another machine's: it cannot be told whose
            continue
        if status:
            yield file.parent, status
