"""A folder in which TensorBoard finds runs, under names that tell them apart.

TensorBoard names a run by its path below one folder. So that folder is made, with a link NAME -> RUN/tensorboard for each run. A
run of an earlier version has other tags: its name holds a translation. A folder of runs is looked through again and again, so
that new runs appear.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from maskloom.errors import UserError
from maskloom.processes import temporary_folder
from maskloom.runs import BOARD, has_events, is_run, runs_below
from maskloom.viewing.translated import Translated, has_old_tags


class Links:
    """It is a context manager, at whose end the folder is gone.

    Args:
        given: folders of runs, or folders that hold runs.

    Attributes:
        folder: for TensorBoard.
        names: run -> its name.

    Raises:
        UserError: a folder is not there, or holds no run.
    """

    def __init__(self, given: Sequence[Path]) -> None:
        for each in given:
            if not each.is_dir():
                raise UserError(f"no run directory {each}")
            if not _runs_of(each):
                raise UserError(
                    f"no run in {each}: name the folder of a run (it has metrics.jsonl and {BOARD}/), or one that holds "
                    "such folders"
                )
        self.given = [_place(each) for each in given]
        self.names: dict[Path, str] = {}
        self.translated: dict[Path, Translated] = {}
        self.folder = Path(tempfile.mkdtemp(prefix="maskloom-monitor-", dir=temporary_folder()))

    def __enter__(self) -> Links:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def refresh(self) -> list[str]:
        """Look for runs, and show what they have by now. Returns the names of those that are new."""
        found = {run: least for each in self.given for run, least in _runs_of(each).items()}
        known = {run.resolve() for run in self.names}
        new = {run: least for run, least in found.items() if run not in self.names and run.resolve() not in known}
        named = names_of(new, self.names.values())
        self.names |= named
        for run, name in self.names.items():
            with contextlib.suppress(OSError):  # it was removed, or its disk is away: try again later
                self._show(run, self.folder / name)
        return list(named.values())

    def _show(self, run: Path, place: Path) -> None:
        if run in self.translated:
            self.translated[run].follow()
            return
        if place.is_symlink():
            return
        board = run / BOARD if is_run(run) else run
        is_board = has_events(board)
        place.parent.mkdir(parents=True, exist_ok=True)
        if is_board and not has_old_tags(board):
            place.symlink_to(board)
        elif (run / "metrics.jsonl").is_file():
            self.translated[run] = Translated(run, place)
            self.translated[run].follow()
        elif is_board:
            place.symlink_to(board)


def names_of(runs: Mapping[Path, int], taken: Iterable[str] = ()) -> dict[Path, str]:
    """Run -> a name that is not `taken`: the last parts of its path, so many that no two are equal.

    Args:
        runs: absolute path -> the fewest parts that its name has.
    """
    parts = {run: run.parts[1:] or (run.name or "run",) for run in runs}
    count = {run: min(least, len(parts[run])) for run, least in runs.items()}
    taken = set(taken)

    def name(run: Path) -> str:
        return "/".join(parts[run][-count[run] :])

    while True:
        counted = Counter(map(name, runs))
        inside = {parent for one in (*taken, *counted) for parent in _parents(one)}  # a link cannot hold another
        equal = [
            run
            for run in runs
            if counted[name(run)] > 1
            or name(run) in taken | inside
            or any(parent in taken or parent in counted for parent in _parents(name(run)))
        ]
        longer = [run for run in equal if count[run] < len(parts[run])]
        for run in longer:
            count[run] += 1
        if not longer:
            return {run: "-".join(parts[run]) if run in equal else name(run) for run in runs}


def _parents(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts))]


def _place(folder: Path) -> Path:
    """Its absolute path. A link keeps its own name, and RUN/tensorboard stands for its run."""
    place = folder.resolve() if folder.name in ("", "..") else folder.parent.resolve() / folder.name
    return place.parent if place.name == BOARD and is_run(place.parent) else place


def _runs_of(given: Path) -> dict[Path, int]:
    """The runs that an argument stands for, with the fewest parts of their names: in a folder, the path from there."""
    folder = _place(given)
    if is_run(folder) or has_events(folder):
        return {folder: 1}
    return {run: len(run.relative_to(folder).parts) for run in runs_below(folder)}
