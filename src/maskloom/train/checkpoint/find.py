"""Find the newest whole checkpoint of a run, or the one that another run begins with.

The first rank lists the folders and reads their manifests and data.json: other machines may see a shared file system as it was
seconds ago. Then every rank verifies its share of the files. So a large checkpoint is verified as fast as it is loaded, and all
ranks agree on what is wrong.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from maskloom.data.cursors import LaneCursors
from maskloom.data.plan import DataPlan
from maskloom.distributed import World, gather_objects
from maskloom.errors import UserError
from maskloom.files import read_plain
from maskloom.progress import warn
from maskloom.status import read_status
from maskloom.train.checkpoint.digests import DATA, Damaged, Digest, damage, fault_of, read_manifest
from maskloom.train.checkpoint.fit import check_fits, split_origin
from maskloom.train.checkpoint.state import State, Which, folder_of, parse_state, read_state, saved_folders, step_of
from maskloom.train.checkpoint.writing import point_at, remove
from maskloom.train.held_out import best_of
from maskloom.train.refusal import PassedOver, known, read_intervals

T = TypeVar("T")
READERS = 4  # files that a rank reads at once: hashing needs a core, waiting for the disk does not
NONE_LEFT = ". No good checkpoint is left: restore one, or start a new run in another run_dir"
LEFT_BEHIND = (".partial-*", ".removing-*", ".latest.json.*")


def find(run: Path, world: World) -> tuple[Path, State] | None:
    """The newest checkpoint whose files are whole, the same on every rank; None if the run has none yet.

    Newer damaged ones are moved aside, so that they never count among those to keep. What a killed save left is removed.

    Raises:
        UserError: there are checkpoints, and every one is damaged; or there were, and all are gone.
    """

    def tidied() -> list[str]:
        tidy(run)
        names = [folder.name for folder in saved_folders(run)]
        if not names:
            refuse_lost(run)
        return names

    folders = [run / "checkpoints" / name for name in _first_rank(tidied, world)]
    found, faults = _newest_whole(folders, world)
    if found is None and faults:
        raise UserError("; ".join(faults) + NONE_LEFT)

    def put_aside() -> None:
        for folder in folders[: len(faults)]:
            _put_aside(folder)
        if found and faults:
            point_at(found[0])

    _first_rank(put_aside, world)
    return found


def find_origin(origin: str, world: World) -> tuple[Path, State]:
    """The checkpoint that `from: RUN@step`, `RUN@best` or `RUN` names, the same on every rank. The other run is left as it is.

    Raises:
        UserError: there is no such checkpoint, or it is damaged.
    """
    run, step = split_origin(origin)

    def candidates() -> list[str]:
        if step is None:
            return [folder.name for folder in saved_folders(run)]
        return [_folder_at(run, _best_step(run) if step == "best" else step).name]

    folders = [run / "checkpoints" / name for name in _first_rank(candidates, world)]
    found, faults = _newest_whole(folders, world)
    if found is None:
        raise UserError(f"from={origin}: " + ("; ".join(faults) or f"{run} has no checkpoint"))
    return found


def saved_at(run: Path, step: Which = None) -> Path:
    """The checkpoint of `step`, the best, or the newest whole one, for one process. Raises UserError if there is none."""
    if not (run / "config.yaml").exists():
        raise UserError(f"{run} is not a run: it has no config.yaml")
    if step == "best":
        step = _best_step(run)
    if step is not None:
        folder = _folder_at(run, step)
        if fault := damage(folder):
            raise UserError(f"{folder} is damaged: {fault}")
        return folder
    faults: list[str] = []
    for folder in saved_folders(run):
        fault = damage(folder)
        if fault is None:
            if faults:
                warn("; ".join(faults) + f". Taking {folder.name}")
            return folder
        faults.append(f"{folder} is damaged: {fault}")
    raise UserError("; ".join(faults) + NONE_LEFT if faults else f"{run} has no checkpoint yet")


def _best_step(run: Path) -> int:
    best = best_of(run)
    if best is None:
        raise UserError(
            f"{run} has no checkpoint of an evaluated step: set evaluation.every_steps, and checkpoint.keep_best=true to keep "
            "the best one"
        )
    return best.step


def resumable_cursors(run: Path, step: int, plan: DataPlan) -> tuple[int, list[LaneCursors]] | None:
    """(step, cursors) of the run's newest checkpoint at or before `step`, or None. Raises UserError if the plan is of other
    data than the run."""
    for folder in saved_folders(run):
        if step_of(folder) > step:
            continue
        if fault := damage(folder):
            warn(f"{folder} is damaged: {fault}")
            continue
        state = read_state(folder)
        check_fits(state, plan, state.precision, folder)
        return state.step, state.lane_cursors()
    return None


def known_intervals(run: Path) -> list[PassedOver]:
    """All intervals of its data that a run skipped: those in its file, and in its newest checkpoint."""
    newest = next((read_state(folder) for folder in saved_folders(run) if (folder / DATA).exists()), None)
    of_run = read_intervals(run)
    return known(newest.intervals(), newest.step, of_run) if newest else of_run


def find_at_most(run: Path, step: int, world: World) -> tuple[Path, State] | None:
    """The newest whole checkpoint of at most `step` steps, the same on every rank. If all of those are gone,
    the oldest whole one of more steps; None if there is none."""

    def candidates() -> list[str]:
        before = [folder.name for folder in saved_folders(run) if step_of(folder) <= step]
        beyond = [folder.name for folder in reversed(saved_folders(run)) if step_of(folder) > step]
        return [*before, *beyond]

    return _newest_whole([run / "checkpoints" / name for name in _first_rank(candidates, world)], world)[0]


def drop_after(run: Path, step: int, world: World) -> None:
    """Remove the checkpoints of more than `step` steps, which are done again; damaged ones are moved aside."""

    def drop() -> None:
        for folder in saved_folders(run):
            if step_of(folder) > step:
                if damage(folder):
                    _put_aside(folder)
                else:
                    remove(folder)
        if left := saved_folders(run):
            point_at(left[0])
        else:
            (run / "checkpoints" / "latest.json").unlink(missing_ok=True)

    _first_rank(drop, world)


def tidy(run: Path) -> None:
    """Put back what a killed save was about to replace, and remove what killed saves left."""
    folder = run / "checkpoints"
    for replaced in folder.glob(".replaced-step-*"):
        name = replaced.name.removeprefix(".replaced-")
        if (folder / name).exists():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            replaced.rename(folder / name)
    for pattern in LEFT_BEHIND:
        for left in folder.glob(pattern):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def refuse_lost(run: Path) -> None:
    """Called if no checkpoint of a run is found. Raises UserError if it had one: most likely a file system is not mounted.

    A run that began again would lose its steps and write over its metrics.
    """
    status = read_status(run)
    if status is None or status.last_good_checkpoint is None:
        return
    if any(interval.after_step == 0 for interval in read_intervals(run)):
        return  # it was rolled back to the beginning, and killed before it could say so
    raise UserError(
        f"{run / 'checkpoints'} holds no checkpoint, and status.json says that {status.last_good_checkpoint} was the last good "
        "one: see that what holds them is mounted, or restore them; a run that is to begin anew gets another run_dir"
    )


def _put_aside(folder: Path) -> None:
    aside = folder.with_name(f".damaged-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)


def _folder_at(run: Path, step: int) -> Path:
    folder = folder_of(run, step)
    if not folder.is_dir():
        known = ", ".join(str(step_of(path)) for path in reversed(saved_folders(run)))
        raise UserError(f"{run} has no checkpoint of step {step}; it has those of {known or 'no step'}")
    return folder


def _newest_whole(folders: list[Path], world: World) -> tuple[tuple[Path, State] | None, list[str]]:
    """The first of `folders` that is whole, and what is wrong with those before it."""
    faults: list[str] = []
    for folder in folders:
        fault, text = _verify(folder, world)
        if fault is None:
            if faults and world.is_first:
                warn("; ".join(faults) + f". Taking {folder.name}")
            return (folder, parse_state(text, folder)), faults
        faults.append(f"{folder} is damaged: {fault}")
    return None, faults


def _verify(folder: Path, world: World) -> tuple[str | None, str]:
    """What is wrong with a checkpoint, the same on every rank, and the text of its data.json."""

    def described() -> list[Any]:
        try:
            files = read_manifest(folder)
            text = read_plain(folder / DATA)
        except (Damaged, UserError) as error:
            return [str(error), [], ""]
        except OSError as error:
            return [f"{DATA} cannot be read ({error.strerror})", [], ""]
        if Digest(len(text), hashlib.sha256(text).hexdigest()) != files[DATA]:
            return [fault_of(folder / DATA, files[DATA]) or f"{DATA} changes while it is read", [], ""]
        # Text that is not UTF-8 is not JSON either: `parse_state` says so.
        return [None, [[name, *wanted] for name, wanted in files.items()], text.decode(errors="replace")]

    fault, files, text = _first_rank(described, world)
    if fault is None:
        largest_first = sorted(files, key=lambda entry: (-entry[1], entry[0]))
        mine = largest_first[world.rank :: world.size]
        with ThreadPoolExecutor(READERS) as pool:
            found = list(pool.map(lambda entry: fault_of(folder / entry[0], Digest(*entry[1:])), mine))
        own = next((fault for fault in found if fault), None)
        fault = next((found for found in gather_objects(own, world) if found), None)
    return fault, text


def _first_rank(function: Callable[[], T], world: World) -> T:
    """What `function` gives on the first rank, on every rank: what JSON can hold. Raises UserError on all of them if it
    fails there."""
    result: T | None = None
    error: str | None = None
    if world.is_first:
        try:
            result = function()
        except (UserError, OSError) as raised:
            error = str(raised)
    result, error = gather_objects([result, error], world)[0]
    if error is not None:
        raise UserError(error)
    return result
