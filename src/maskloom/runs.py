"""What a run left in its folder, read without torch: for commands that look at runs.

A run may be at work, finished, or written by an earlier version. What it does not have is None or left out.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from maskloom.errors import UserError
from maskloom.files import parse_json, read_lines, read_plain
from maskloom.plain_yaml import read_yaml
from maskloom.redaction import brief

BOARD = "tensorboard"
"""Folder of a run with the files that TensorBoard reads."""
EVENTS = "events.out.tfevents."
"""What their names begin with."""
DEEPEST = 4
"""Folders between a folder of runs and a run, at most."""


class Evaluation(NamedTuple):
    """Held-out figures of one step."""

    step: int
    loss: float
    accuracy: float | None


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run."""
    return any((folder / name).is_file() for name in ("status.json", "metrics.jsonl")) or (folder / BOARD).is_dir()


def has_events(folder: Path) -> bool:
    """Whether TensorBoard finds something directly in a folder."""
    try:
        return any(name.startswith(EVENTS) for name in os.listdir(folder))  # noqa: PTH208
    except OSError:
        return False


def runs_below(folder: Path, deepest: int = DEEPEST) -> Iterator[Path]:
    """The runs in a folder, and other folders with files for TensorBoard. Hidden folders are left out, and runs in runs."""
    try:
        with os.scandir(folder) as entries:
            inner = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError:  # it may not be looked at, or is gone
        return
    for name in inner:
        if is_run(folder / name) or has_events(folder / name):
            yield folder / name
        elif deepest:
            yield from runs_below(folder / name, deepest - 1)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return read_lines(run / "metrics.jsonl")


def number(line: Mapping[str, Any], name: str) -> float | None:
    """A finite number of a line; None if it has none of that name. JSON has null for what was not finite."""
    value: Any = line.get(name)
    return float(value) if is_number(value) else None


def is_number(value: Any) -> bool:
    """Whether a value of a line is a finite number."""
    return type(value) in (int, float) and math.isfinite(value)


def evaluations(lines: Sequence[Mapping[str, Any]]) -> list[Evaluation]:
    """The evaluations of a run, by step. Of a step that was logged twice, the last one."""
    found = {
        line["step"]: Evaluation(line["step"], loss, number(line, "evaluation_accuracy"))
        for line in lines
        if (loss := number(line, "evaluation_loss")) is not None
    }
    return [found[step] for step in sorted(found)]


def training_losses(lines: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Step -> mean training loss since the line before."""
    return {line["step"]: loss for line in lines if (loss := number(line, "loss_mean")) is not None}


def seconds_of(lines: Sequence[Mapping[str, Any]]) -> list[float]:
    """The seconds of training that each line covers; 0 for an evaluation. Evaluations and checkpoints take theirs beside."""
    covered, before = [], 0
    for line in lines:
        each_s = number(line, "step_time_s")
        covered.append(0.0 if each_s is None else each_s * max(line["step"] - before, 0))
        before = before if each_s is None else line["step"]
    return covered


def read_config(run: Path) -> dict[str, Any]:
    """config.yaml as plain values, as it was written. Raises UserError if there is none, or it is not YAML."""
    file = run / "config.yaml"
    try:
        tree = read_yaml(read_plain(file).decode("utf-8"), str(file))
    except FileNotFoundError:
        raise UserError(f"no run at {run} (no config.yaml)") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is damaged ({brief(error)})") from None
    if not isinstance(tree, dict):
        raise UserError(f"{file} is damaged: it holds no keys")
    return tree


def read_environment(run: Path) -> dict[str, Any]:
    """environment.json: versions and machine at the first start; empty if there is none that can be read."""
    try:
        values = parse_json(read_plain(run / "environment.json"))
    except (OSError, UserError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
