"""What a checkpoint holds beside the engine's files: the position in the data, and counts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from maskloom.data.cursors import Cursor, LaneCursors
from maskloom.errors import UserError
from maskloom.files import parse_json, read_plain
from maskloom.redaction import brief
from maskloom.scalars import is_count
from maskloom.train.held_out import HeldOut
from maskloom.train.refusal import GuardState, PassedOver

NAME = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,15})")
"""Of a checkpoint's folder, as `folder_of` makes it."""
MOST_KEYS = 50
Which = int | Literal["best"] | None
"""A checkpoint of a run: that of a step, the one with the lowest held-out loss, or the newest whole one."""


@dataclass(frozen=True)
class State:
    """The content of data.json.

    Attributes:
        step: optimizer steps done.
        tokens_seen: text tokens that they consumed, over all ranks.
        cursors: where each lane stands in each corpus, in lane order.
        fingerprint: what the data follows from; a resume with another one is refused.
        skipped: blocks of bad data that were skipped, over all ranks.
        world_size, zero_stage, precision: how the engine's files are laid out.
        guard: what decides which steps are refused, as `GuardState.to_json` gives it.
        passed_over: intervals of the data before `step` that the run skipped, as `PassedOver.to_json` gives them.
        held_out: the evaluations up to `step`, as `HeldOut.to_json` gives them.
    """

    step: int
    tokens_seen: int
    cursors: list[list[list[Any]]]
    skipped: int
    fingerprint: dict[str, Any]
    world_size: int
    zero_stage: int
    precision: str
    guard: dict[str, Any] = field(default_factory=dict)
    passed_over: list[dict[str, Any]] = field(default_factory=list)
    held_out: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raises TypeError, LookupError, ValueError or AttributeError if a value is not what its name says."""
        for name in ("step", "tokens_seen", "skipped", "world_size"):
            if not is_count(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)!r}")
        if self.zero_stage not in range(4) or not self.world_size or not isinstance(self.precision, str):
            raise ValueError(f"ZeRO stage {self.zero_stage!r}, {self.world_size!r} ranks, precision {self.precision!r}")
        if not isinstance(self.fingerprint, dict):
            raise ValueError("its fingerprint is not an object")
        self.lane_cursors(), self.guard_state(), self.intervals(), self.evaluations()

    def lane_cursors(self) -> list[LaneCursors]:
        return [tuple(map(Cursor.from_json, lane)) for lane in self.cursors]

    def guard_state(self) -> GuardState:
        return GuardState.from_json(self.guard)

    def intervals(self) -> list[PassedOver]:
        return [PassedOver.from_json(values) for values in self.passed_over]

    def evaluations(self) -> HeldOut | None:
        """None if there were none."""
        return HeldOut.from_json(self.held_out)


def parse_state(text: str | bytes, folder: Path) -> State:
    """The data state that `folder`'s data.json holds. Raises UserError if it holds none, or one of another version."""
    try:
        values = parse_json(text)
        if not isinstance(values, dict):
            raise ValueError("it is not an object")
    except ValueError as error:
        raise UserError(f"{folder / 'data.json'} is damaged ({error}): restore it, or remove {folder}") from None
    try:
        state = State(**values)
    except TypeError:
        keys = ", ".join(key if key.isidentifier() else repr(key) for key in list(values)[:MOST_KEYS])
        raise UserError(
            f"{folder} was written by another version of maskloom ({keys} in its data.json): resume with that version, or start "
            "a new run in another run_dir"
        ) from None
    try:
        state.check()
    except (TypeError, LookupError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / 'data.json'} is damaged ({brief(error)}): restore it, or remove {folder}") from None
    return state


def read_state(folder: Path) -> State:
    """`parse_state` of a folder's file."""
    return parse_state(read_plain(folder / "data.json"), folder)


def folder_of(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is, or would be."""
    return run / "checkpoints" / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """The step in a checkpoint's name."""
    return int(folder.name.removeprefix("step-"))


def saved_folders(run: Path) -> list[Path]:
    """The checkpoints of a run, the newest first. Another name, such as that of a copy (`step-00001000.bak`), is none of them:
    it is neither resumed from, nor counted, nor removed."""
    found = [folder for folder in (run / "checkpoints").glob("step-*") if NAME.fullmatch(folder.name)]
    return sorted(found, key=step_of, reverse=True)
