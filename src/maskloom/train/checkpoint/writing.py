"""Files of a checkpoint to the disk, and a folder of them to a checkpoint, in an order in which a crash loses nothing.

Content before names: a file is flushed before it is digested, the folder before it is renamed, and the folder around it
afterwards. What is removed is first renamed, so that a folder named `step-*` is whole at any moment.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from maskloom.config import Checkpoint
from maskloom.files import naming, sync_folder, write_atomically
from maskloom.progress import warn
from maskloom.train.checkpoint.digests import DATA, MANIFEST, digest
from maskloom.train.checkpoint.state import State, saved_folders, step_of
from maskloom.train.engine.writing import EngineFile
from maskloom.train.held_out import HeldOut

PACKAGES = ("maskloom", "deepspeed", "torch")


def write_parts(partial: Path, parts: list[EngineFile], rank: int) -> None:
    """Write a rank's files, and their digests as the file system gives them back. Raises OSError."""
    files = {}
    while parts:
        part = parts.pop(0)  # its memory is given back when it is written
        file = partial / part.name
        with naming(file), file.open("wb") as stream:
            torch.save(part.content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        files[part.name] = digest(file)._asdict()
    write_atomically(partial / f"rank-{rank}.json", json.dumps(files))


def publish(partial: Path, folder: Path, state: State, settings: Checkpoint) -> None:
    """Make the checkpoint `folder` of all ranks' files, and remove old ones. Raises OSError."""
    files: dict[str, Any] = {}
    for rank in range(state.world_size):  # by name: a listing of a shared file system may be seconds old
        files |= json.loads((partial / f"rank-{rank}.json").read_text())
    write_atomically(partial / DATA, json.dumps(asdict(state)))
    manifest = {
        "step": state.step,
        "world_size": state.world_size,
        "zero_stage": state.zero_stage,
        "precision": state.precision,
        "versions": {name: version(name) for name in PACKAGES},
        "files": {**files, DATA: digest(partial / DATA)._asdict()},
    }
    write_atomically(partial / MANIFEST, json.dumps(manifest, indent=1))
    for rank in range(state.world_size):
        (partial / f"rank-{rank}.json").unlink()
    sync_folder(partial)
    replaced = folder.with_name(f".replaced-{folder.name}")
    if folder.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        folder.rename(replaced)
    try:
        partial.rename(folder)
    except OSError:
        if replaced.exists():
            replaced.rename(folder)
        raise
    sync_folder(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)
    try:
        point_at(folder)
    except OSError as error:  # `find` does not need it
        warn(f"{folder} is saved, but latest.json could not be written: {error}")
    remove_old(folder.parent.parent, settings, state.evaluations())


def point_at(folder: Path) -> None:
    """Make latest.json name a checkpoint: for the status, for people and for scripts."""
    write_atomically(folder.parent / "latest.json", json.dumps({"name": folder.name, "step": step_of(folder)}))
    sync_folder(folder.parent)


def remove_old(run: Path, settings: Checkpoint, held_out: HeldOut | None) -> None:
    """Remove checkpoints that are not to be kept: see `kept_steps`."""
    folders = saved_folders(run)
    kept = kept_steps([step_of(folder) for folder in folders], settings, held_out)
    for folder in folders:
        if step_of(folder) in kept:
            continue
        try:
            remove(folder)
        except OSError as error:
            warn(f"{folder} is no longer kept and could not be removed: {error.strerror}")


def kept_steps(steps: Sequence[int], settings: Checkpoint, held_out: HeldOut | None) -> set[int]:
    """The steps whose checkpoints are kept: the newest, multiples of `keep_every_steps`, and the best.

    The best one as of each of the newest is kept too: a run that resumes from an older one still finds it.

    Args:
        steps: of all checkpoints, the newest first.
        held_out: the evaluations so far.
    """
    newest, every = steps[: settings.keep_last], settings.keep_every_steps
    kept = {*newest, *(step for step in steps if every and step % every == 0)}
    if settings.keep_best and held_out:
        best = (held_out.best(set(steps), until) for until in newest)
        kept |= {each.step for each in best if each}
    return kept


def remove(folder: Path) -> None:
    """Remove a checkpoint: under its name it is whole to the last."""
    leaving = folder.with_name(f".removing-{folder.name}")
    folder.rename(leaving)
    shutil.rmtree(leaving, ignore_errors=True)
