"""Save, verify, find the newest good one, load, also at another world size.

    RUN/checkpoints/step-00001000/{DeepSpeed's files, data.json, manifest.json}   RUN/checkpoints/latest.json

DeepSpeed writes into a folder of another name, which gets its digests and is then renamed: a folder named `step-*` is
whole. A resume takes the newest one whose files have the sizes and SHA-256 digests of its manifest, and says so loudly
when that is not the newest there is. The data state is a few integers a lane, valid at any world size.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from maskloom.data.order import VERSIONS, Cursor, LaneCursors
from maskloom.data.plan import DataPlan
from maskloom.distributed import World, barrier, gather_objects
from maskloom.errors import UserError
from maskloom.files import sync_folder, write_atomically
from maskloom.progress import say, warn
from maskloom.train.engine.files import convert_to_universal, load_engine

CHUNK_BYTES = 1 << 22
UNIVERSAL = ".universal"


@dataclass(frozen=True)
class State:
    """What a checkpoint holds beside DeepSpeed's files.

    Attributes:
        step: optimizer steps done.
        tokens_seen: text tokens that they consumed, over all ranks.
        cursors: where each lane stands in each corpus, in lane order.
        fingerprint: what the data follows from; a resume with another one is refused.
        skipped: blocks that were passed over, over all ranks.
        world_size, zero_stage, precision: how the engine's files are laid out.
    """

    step: int
    tokens_seen: int
    cursors: list[list[list[Any]]]
    skipped: int
    fingerprint: dict[str, Any]
    world_size: int
    zero_stage: int
    precision: str

    def lane_cursors(self) -> list[LaneCursors]:
        return [tuple(map(Cursor.from_json, lane)) for lane in self.cursors]


def fingerprint(plan: DataPlan) -> dict[str, Any]:
    """What decides which rows a step sees, beside the configuration."""
    return {
        **{f"corpus {number}": index.digest for number, index in enumerate(plan.corpora)},
        "tokenizer": plan.tokenizer.fingerprint,
        "lanes": plan.lanes,
        **{f"version of {part}": version for part, version in VERSIONS.items()},
    }


def save(engine: Any, run: Path, state: State, keep_last: int, world: World) -> Path:
    """Write a checkpoint on all ranks, then make it visible at once; removes the oldest beyond `keep_last`."""
    folder = run / "checkpoints"
    name = f"step-{state.step:08d}"
    partial = folder / f".partial-{name}"
    if world.is_first:
        shutil.rmtree(partial, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    barrier()
    engine.save_checkpoint(str(folder), tag=partial.name, save_latest=False)
    barrier()
    if world.is_first:
        write_atomically(partial / "data.json", json.dumps(asdict(state)))
        files = {file.name: _digest(file) for file in sorted(partial.iterdir())}
        write_atomically(partial / "manifest.json", json.dumps({"step": state.step, "files": files}, indent=1))
        shutil.rmtree(folder / name, ignore_errors=True)
        partial.rename(folder / name)
        sync_folder(folder)
        write_atomically(folder / "latest.json", json.dumps({"name": name, "step": state.step}))
        for old in _saved(run)[keep_last:]:
            shutil.rmtree(old)
    barrier()
    return folder / name


def find(run: Path, world: World) -> tuple[Path, State] | None:
    """The newest checkpoint whose files are whole, the same on every rank; None where the run has none yet.

    Raises:
        UserError: there are checkpoints, and every one is damaged.
    """
    chosen = _settle(run) if world.is_first else None
    name, fault = gather_objects([chosen.name, None] if isinstance(chosen, Path) else [None, chosen], world)[0]
    if fault is not None:
        raise UserError(fault)
    if name is None:
        return None
    folder = run / "checkpoints" / name
    return folder, read_state(folder)


def read_state(folder: Path) -> State:
    """The data state of a checkpoint. Raises UserError where another version of maskloom wrote it."""
    values = json.loads((folder / "data.json").read_text())
    try:
        return State(**values)
    except TypeError:
        raise UserError(
            f"{folder} was written by another version of maskloom ({', '.join(values)} in its data.json): go on with that "
            "version, or start a new run in another run_dir"
        ) from None


def check_fits(state: State, plan: DataPlan, zero_stage: int, precision: str, folder: Path) -> None:
    """Raises UserError listing what of the run is not what the checkpoint was written with."""
    now = fingerprint(plan)
    wrong = [
        f"  {key}: {state.fingerprint.get(key)} in the checkpoint, {now.get(key)} now"
        for key in {**now, **state.fingerprint}
        if state.fingerprint.get(key) != now.get(key)
    ]
    if any("version of" in line for line in wrong):
        wrong.append(
            "  (this maskloom reads other rows from the same data: go on with the version that wrote the checkpoint)"
        )
    if state.zero_stage != zero_stage and {state.zero_stage, zero_stage} != {1, 2}:
        wrong.append(f"  engine.zero_stage: {state.zero_stage} in the checkpoint, {zero_stage} now (1 and 2 exchange)")
    if state.precision != precision:
        wrong.append(f"  engine.precision: {state.precision} in the checkpoint, {precision} now")
    if state.step > plan.total_steps:
        wrong.append(f"  steps: {state.step} done in the checkpoint, {plan.total_steps} in all now")
    if wrong:
        raise UserError(
            f"{folder} does not fit this run:\n"
            + "\n".join(wrong)
            + "\nSet these back, or start a new run in another run_dir"
        )


def needs_universal(state: State, world: World) -> bool:
    """Whether the engine must be built to load the universal format: its state is spread over another number of ranks."""
    return state.zero_stage > 0 and state.world_size != world.size


def load(engine: Any, folder: Path, state: State, world: World) -> None:
    """Load model and optimizer from a checkpoint that `find` gave."""
    tag = folder.name
    if needs_universal(state, world):
        tag = f"{UNIVERSAL}-{folder.name}"
        if world.is_first:
            say(f"checkpoint: {folder.name} was written by {state.world_size} rank(s), converting it for {world.size}")
            shutil.rmtree(folder.parent / tag, ignore_errors=True)
            convert_to_universal(folder, folder.parent / tag)
        barrier()
    load_engine(engine, folder.parent, tag)
    barrier()
    if tag != folder.name and world.is_first:
        shutil.rmtree(folder.parent / tag, ignore_errors=True)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        files = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest cannot be read ({error!r})"
    if "data.json" not in files:
        return "its manifest does not list data.json"
    for name, (size, sha256) in files.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if _digest(file)["sha256"] != sha256:
            return f"the content of {name} is not what was written"
    return None


def saved_at(run: Path, step: int | None = None) -> Path:
    """The checkpoint of `step`, or the newest whole one. Raises UserError where there is none."""
    if not (run / "config.yaml").exists():
        raise UserError(f"{run} is no run: it has no config.yaml")
    if step is None:
        chosen = _newest_good(run)
        if not isinstance(chosen, Path):
            raise UserError(chosen or f"{run} has no checkpoint yet")
        return chosen
    folder = run / "checkpoints" / f"step-{step:08d}"
    if not folder.is_dir():
        known = ", ".join(str(int(path.name.split("-")[1])) for path in reversed(_saved(run)))
        raise UserError(f"{run} has no checkpoint of step {step}; it has those of {known or 'no step'}")
    if fault := damage(folder):
        raise UserError(f"{folder} is damaged: {fault}")
    return folder


def resumable_cursors(run: Path, step: int, plan: DataPlan) -> tuple[int, list[LaneCursors]] | None:
    """(step, cursors) of the run's newest checkpoint at or before `step`, or None. Raises UserError where the data of the
    plan is not that of the run."""
    for folder in _saved(run):
        if int(folder.name.removeprefix("step-")) > step:
            continue
        if fault := damage(folder):
            warn(f"{folder} is damaged: {fault}")
            continue
        state = read_state(folder)
        check_fits(state, plan, state.zero_stage, state.precision, folder)
        return state.step, state.lane_cursors()
    return None


def _settle(run: Path) -> Path | str | None:
    """What `_newest_good` gives; damaged checkpoints that are newer go aside, so that they are never counted among those
    to keep, and what a killed save left is removed."""
    chosen = _newest_good(run)
    if isinstance(chosen, Path):
        for folder in _saved(run):
            if folder.name > chosen.name:
                aside = folder.with_name(f".damaged-{folder.name}")
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
    for left in (run / "checkpoints").glob(".partial-*"):
        shutil.rmtree(left, ignore_errors=True)
    return chosen


def _newest_good(run: Path) -> Path | str | None:
    """The newest whole checkpoint, None where there is none, or a message where all are damaged."""
    faults: list[str] = []
    for folder in _saved(run):
        fault = damage(folder)
        if fault is None:
            if faults:
                warn("; ".join(faults) + f". Taking {folder.name}")
            return folder
        faults.append(f"{folder} is damaged: {fault}")
    if not faults:
        return None
    return "; ".join(faults) + ". No good checkpoint is left: restore one, or start a new run in another run_dir"


def _saved(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step-*"), reverse=True)


def _digest(file: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, which is flushed to the disk."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
        os.fsync(stream.fileno())
    return {"bytes": file.stat().st_size, "sha256": digest.hexdigest()}
