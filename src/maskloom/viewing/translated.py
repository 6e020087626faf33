"""A run of an earlier version under the tags of today, so that it stands in the same cards as new runs.

Its files for TensorBoard have other tags (`train/lr`), but metrics.jsonl has kept its names. So new event files are made from it,
in a folder of the monitor; the run's folder stays as it is. metrics.jsonl has no times. They are reckoned back from its last
change by the seconds that steps took.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from maskloom.runs import EVENTS, is_number, read_metrics, seconds_of
from maskloom.tags import HELD_OUT, tagged

OLD_TAGS = re.compile(rb"train/loss_mean|evaluation/loss")
HEAD_BYTES = 1 << 16
"""The first lines of an event file are in here."""
BESIDE = {"evaluation_loss": "train/loss", "evaluation_accuracy": "train/accuracy"}
"""Name in metrics.jsonl -> tag in the sub-run: the second line in a card."""


def has_old_tags(board: Path) -> bool:
    """Whether the oldest event file in a folder has tags of an earlier version."""
    files = sorted(path for path in board.iterdir() if path.name.startswith(EVENTS))
    for path in files:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        if b"train/" in head or b"evaluation/" in head:
            return OLD_TAGS.search(head) is not None
    return False


class Translated:
    """Event files in `out`, made from the metrics.jsonl of `run`. `follow` adds what was logged since."""

    def __init__(self, run: Path, out: Path) -> None:
        self.run, self.out = run, out
        self.steps: list[int] = []
        self.clock_s: float | None = None
        self.seen = (0, 0)

    def follow(self) -> None:
        """Write the lines that are new. If lines were dropped, as a resume does, all is written anew."""
        state = (self.run / "metrics.jsonl").stat()
        if (state.st_size, state.st_mtime_ns) == self.seen:
            return
        self.seen = (state.st_size, state.st_mtime_ns)
        lines = read_metrics(self.run)
        steps = [line["step"] for line in lines]
        if steps[: len(self.steps)] != self.steps:
            shutil.rmtree(self.out, ignore_errors=True)
            self.steps, self.clock_s = [], None
        if len(steps) == len(self.steps):
            return
        took_s = seconds_of(lines)
        if self.clock_s is None:
            self.clock_s = state.st_mtime - sum(took_s)
        main, beside = [], []
        for line, seconds in list(zip(lines, took_s, strict=True))[len(self.steps) :]:
            self.clock_s += seconds
            values = {name: float(value) for name, value in line.items() if name != "step" and is_number(value)}
            main.append(_event(line["step"], self.clock_s, tagged(values)))
            second = {tag: values[name] for name, tag in BESIDE.items() if name in values}
            if second:
                beside.append(_event(line["step"], self.clock_s, second))
        _append(self.out, main)
        if beside:
            _append(self.out / HELD_OUT, beside)
        self.steps = steps


def _event(step: int, time_s: float, values: Mapping[str, float]) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
    return bytes(Event(step=step, wall_time=time_s, summary=summary).SerializeToString())


def _append(folder: Path, events: list[bytes]) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{EVENTS}0000000001.metrics"
    is_new = not path.exists()
    with path.open("ab") as file:
        writer = RecordWriter(file)
        for event in [*([Event(file_version="brain.Event:2").SerializeToString()] if is_new else []), *events]:
            writer.write(event)
