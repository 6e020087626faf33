"""Saves that are killed at each of their changes to the file system in turn, and what is found after each.

`python -m tests.train.crash.saves FOLDER`, with crash.c preloaded. Two ranks' files are written one after the other by one
process, which is a fork: nothing is imported anew.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from maskloom.config import Checkpoint
from maskloom.distributed import World
from maskloom.train import checkpoint
from maskloom.train.checkpoint.state import State, folder_of, saved_folders
from maskloom.train.checkpoint.writing import publish, write_parts
from maskloom.train.engine.writing import EngineFile

RANKS = 2
KEPT = Checkpoint(keep_last=2)
ODD = "step-00000012"  # with the manifest of another step


def save(run: Path, step: int, value: float) -> None:
    """A checkpoint of one tensor a rank, as `Saver` writes it."""
    state = State(step, 0, [], 0, {"value": value}, RANKS, 1, "fp32")
    folder = folder_of(run, step)
    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for rank in range(RANKS):
        write_parts(partial, [EngineFile(f"rank{rank}.pt", {"w": torch.full((999,), value)}, 3996, True)], rank)
    publish(partial, folder, state, KEPT)


def in_a_fork(crash: ctypes.CDLL, at: int, work: Callable[[], object]) -> bool:
    """Whether `work` came to its end before change number `at`."""
    child = os.fork()
    if child == 0:
        crash.crash_at(at)
        work()
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 137), code
    return code == 0


def at_every_change(name: str, start: Path, work: Callable[[Path], object], whole: dict[int, set[float]]) -> None:
    """Kill `work` on a copy of `start` at each change in turn.

    Args:
        whole: the steps that may be found afterwards, and the values that their checkpoints may hold.
    """
    crash = ctypes.CDLL(None)
    run, ended, at = start.with_name("run"), False, 0
    while not ended:
        at += 1
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(start, run)
        ended = in_a_fork(crash, at, lambda: work(run))
        for folder in saved_folders(run):
            assert folder.name == ODD or not checkpoint.damage(folder), (name, at, folder)
        found = checkpoint.find(run, World())
        assert found is not None, f"{name}: nothing is left after change {at}"
        folder, state = found
        value = state.fingerprint["value"]
        assert state.step in whole, (name, at, folder)
        assert value in whole[state.step], (name, at, folder, value)
        for rank in range(RANKS):
            assert torch.load(folder / f"rank{rank}.pt")["w"].eq(value).all(), (name, at)
        hidden = {path.name.split("-")[0] for path in (run / "checkpoints").glob(".*")}
        assert hidden <= {".damaged"}, (name, at, hidden)
        save(run, 16, 16.0)
        again = checkpoint.find(run, World())
        assert again is not None
        assert again[1].step == 16, (name, at)
    print(f"{name}: {at - 1} changes")


def main(folder: Path) -> None:
    start = folder / "start"
    for step in (2, 4):
        save(start, step, step)
    at_every_change("a save, which removes the oldest", start, lambda run: save(run, 8, 8.0), {4: {4.0}, 8: {8.0}})
    at_every_change("a save of a step that there is", start, lambda run: save(run, 4, 4.5), {4: {4.0, 4.5}})

    interrupted = folder / "interrupted"
    shutil.copytree(start, interrupted)
    checkpoints = interrupted / "checkpoints"
    shutil.copytree(checkpoints / "step-00000004", checkpoints / ".partial-step-00000008")
    shutil.copytree(checkpoints / "step-00000004", checkpoints / ".removing-step-00000001")
    (checkpoints / "step-00000004").rename(checkpoints / ".replaced-step-00000004")
    shutil.copytree(checkpoints / "step-00000002", checkpoints / ODD)
    at_every_change("a start after a killed save", interrupted, lambda run: checkpoint.find(run, World()), {4: {4.0}})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
