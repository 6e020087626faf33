"""The state of a run: `RUN/status.json`, exit codes, and whether another attempt is worth it.

    running -> done | stopped | failed

One process at a time replaces `status.json`. Usually it is the first rank. If an attempt fails, it is any of its ranks. If all
ranks were killed, it is the process that started them. `RUN/attempts.jsonl` has a line for each start.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from maskloom.errors import UserError
from maskloom.files import open_plain, parse_json, read_plain, write_atomically
from maskloom.redaction import brief
from maskloom.scalars import is_count

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_STOPPED = 75
"""Somebody asked to stop (SIGTERM, SIGUSR2, a stop file). A checkpoint was written, and the same command resumes from it. This is
EX_TEMPFAIL of sysexits.h: try again."""
EXIT_HUNG = 76
"""A rank waited longer than `timeouts` for others."""
ATTEMPTS_WITHOUT_PROGRESS = 3
REFRESH_S = 10.0
"""Time between two writings of a running status."""
LATEST_UNIX_S = 1e11
"""The largest time that is believed: about the year 5138."""
SILENT_S = 6 * REFRESH_S
"""If a running status is older than this, the run is most likely dead."""
CHECKPOINT = re.compile(r"step-[0-9]{8,16}")
"""The name of a checkpoint."""
START = "MASKLOOM_START"
"""Environment variable with a random word for each start. The status and the attempts hold the word too, so that whoever starts
ranks recognises its own."""

State = Literal["running", "stopped", "done", "failed"]


@dataclass(frozen=True)
class Status:
    """The content of status.json.

    Attributes:
        state: stays `running` if every rank was killed at once. `updated_unix_s` is old then.
        step: steps done when this was written.
        total_steps: steps of the whole run.
        attempt: number of this start, from 1.
        reason: why the run is in this state, in words.
        advice: what to do next.
        can_retry: the same command may succeed. False after an error of the user.
        last_good_checkpoint: name of the newest complete checkpoint, such as `step-00001000`.
        hosts: names of the machines, in the order of their first ranks.
        world_size: number of ranks.
        updated_unix_s: time of writing.
        start: value of START for the ranks; empty if it was not set.
    """

    state: State
    step: int
    total_steps: int
    attempt: int
    reason: str = ""
    advice: str = ""
    can_retry: bool = True
    last_good_checkpoint: str | None = None
    hosts: tuple[str, ...] = ()
    world_size: int = 1
    updated_unix_s: float = 0.0
    start: str = ""

    def write(self, run: Path) -> None:
        """Replace `RUN/status.json`, with the time of writing."""
        write_atomically(run / "status.json", self.as_text())

    def as_text(self) -> str:
        """The JSON that `parse_status` reads, with the time of writing."""
        return json.dumps(asdict(replace(self, updated_unix_s=round(time.time(), 3))), indent=1)


def read_status(run: Path) -> Status | None:
    """The status of a run; None if it has none yet. Raises UserError if status.json is damaged or not a plain file."""
    file = run / "status.json"
    try:
        content = read_plain(file)
    except FileNotFoundError:
        return None
    try:
        return parse_status(content.decode("utf-8"))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged ({brief(error)}): remove it; the next start writes it anew") from None


def parse_status(text: str) -> Status:
    """The status that a JSON text holds. Raises ValueError, KeyError or TypeError if it does not hold one."""
    values = parse_json(text)
    status = Status(**{**values, "hosts": tuple(values["hosts"])})
    if status.state not in get_args(State):
        raise ValueError(f"state is {status.state!r}")
    for name, example in vars(Status("running", 0, 0, 1)).items():
        value, kind = getattr(status, name), float if name == "updated_unix_s" else type(example)
        if name == "last_good_checkpoint":
            if value is not None and not CHECKPOINT.fullmatch(value):
                raise ValueError(f"{name} is {value!r}")
        elif type(value) not in ((int, float) if kind is float else (kind,)):
            raise TypeError(f"{name} is {value!r}")
        elif (kind is int and not is_count(value)) or (kind is float and not 0 <= value < LATEST_UNIX_S):
            raise ValueError(f"{name} is {value!r}")
    if not isinstance(values["hosts"], list) or not all(isinstance(host, str) for host in status.hosts):
        raise TypeError(f"hosts is {values['hosts']!r}")
    return status


def note_attempt(run: Path, line: Mapping[str, object]) -> None:
    """Add a line to `RUN/attempts.jsonl`: number of the attempt, its first step, world_size, hosts, start."""
    with open(run / "attempts.jsonl", "a", encoding="utf-8", opener=open_plain) as file:
        file.write(json.dumps({**line, "unix_s": round(time.time(), 3)}) + "\n")


def stands_still(first_steps: list[int]) -> bool:
    """Whether the newest attempts made no progress: the last ATTEMPTS_WITHOUT_PROGRESS of them began at the same step.

    Args:
        first_steps: first step of each attempt, oldest first.
    """
    newest = first_steps[-ATTEMPTS_WITHOUT_PROGRESS:]
    return len(newest) == ATTEMPTS_WITHOUT_PROGRESS and len(set(newest)) == 1


def attempt_steps(run: Path, start: str | None = None) -> list[int]:
    """The first step of each attempt of this run, oldest first. A line that a crash cut short does not count.

    Args:
        start: count only attempts with this value of START.
    """
    steps = []
    with contextlib.suppress(FileNotFoundError):
        for line in read_plain(run / "attempts.jsonl").decode(errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                values = parse_json(line)
                if is_count(values["step"]) and (start is None or values.get("start") == start):
                    steps.append(values["step"])
    return steps


def next_step(status: Status | None) -> int:
    """The first step of another attempt: that of the newest complete checkpoint."""
    name = (status.last_good_checkpoint if status else None) or "step-0"
    return int(name.rpartition("-")[2])


def why_not_again(status: Status | None, first_steps: list[int]) -> str | None:
    """Why another attempt of a run that ended is useless; None if it may make progress.

    Args:
        first_steps: first step of each attempt, oldest first.
    """
    if status is None:
        return "it did not begin"
    if status.state == "done":
        return "it is done"
    if status.state == "failed" and not status.can_retry:
        return "the same command would fail again"
    if stands_still(first_steps) and next_step(status) <= first_steps[-1]:
        return (
            f"the last {ATTEMPTS_WITHOUT_PROGRESS} attempts all began at step {first_steps[-1]:,}, and none got further"
        )
    return None
