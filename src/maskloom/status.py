"""How a run stands, for people and for what starts it again: `RUN/status.json`, exit codes, and when another attempt is worth it.

    running -> done | stopped | failed

One process at a time writes `status.json`, whole: the run's first rank, any rank of an attempt that fails, and what started the
ranks where none of them could (all were killed). `RUN/attempts.jsonl` has a line for each start.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from maskloom.errors import UserError
from maskloom.files import open_plain, parse_json, read_plain, write_atomically
from maskloom.redaction import brief
from maskloom.scalars import is_count

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_STOPPED = 75
"""Asked to stop (SIGTERM, SIGUSR2, a stop file): a checkpoint was written, and the same command goes on from it. The code of
sysexits.h for "try again"."""
EXIT_HUNG = 76
"""A rank waited longer than `timeouts` for others."""
ATTEMPTS_WITHOUT_PROGRESS = 3
REFRESH_S = 10.0
"""Between two writings of a running status."""
LATEST_UNIX_S = 1e11
"""Seconds since 1970, some three thousand years."""
SILENT_S = 6 * REFRESH_S
"""A run that wrote nothing for so long is most likely gone."""
CHECKPOINT = re.compile(r"step-[0-9]{8,16}")
"""The name of a checkpoint."""
START = "MASKLOOM_START"
"""Variable of the environment: what starts ranks gives each attempt a word of its own. Status and attempts have it too, so that
nobody takes another process's for theirs."""

State = Literal["running", "stopped", "done", "failed"]


@dataclass(frozen=True)
class Status:
    """The content of status.json.

    Attributes:
        state: `running` also where every rank was killed at once and nobody could say so: `updated_unix_s` is old then.
        step, total_steps: steps done when this was written, and in all.
        attempt: starts of this run so far, this one included.
        reason: why it is in this state, in words.
        advice: what to do next.
        can_retry: whether the same command may succeed: not after an error in what was given.
        last_good_checkpoint: name of the newest whole one, such as `step-00001000`.
        hosts: names of the machines, in the order of their first ranks.
        world_size: ranks.
        updated_unix_s: when this was written.
        start: what START was for the ranks; empty where nobody set it.
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
        """What `parse_status` reads, with the time of writing."""
        return json.dumps(asdict(replace(self, updated_unix_s=round(time.time(), 3))), indent=1)


def read_status(run: Path) -> Status | None:
    """The status of a run, None where it has none yet. Raises UserError where it is no file, or no status."""
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
    """Raises ValueError, KeyError or TypeError where the text is no status."""
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


def note_attempt(run: Path, line: dict[str, Any]) -> None:
    """Add a line to `RUN/attempts.jsonl`: attempt, step that it begins at, world_size, hosts, start."""
    with open(run / "attempts.jsonl", "a", encoding="utf-8", opener=open_plain) as file:
        file.write(json.dumps({**line, "unix_s": round(time.time(), 3)}) + "\n")


def stands_still(first_steps: list[int]) -> bool:
    """Whether the newest attempts, which began at these steps, oldest first, got nowhere: as many of them as
    ATTEMPTS_WITHOUT_PROGRESS began at the same step."""
    newest = first_steps[-ATTEMPTS_WITHOUT_PROGRESS:]
    return len(newest) == ATTEMPTS_WITHOUT_PROGRESS and len(set(newest)) == 1


def attempt_steps(run: Path, start: str | None = None) -> list[int]:
    """The steps at which this run's attempts began, oldest first. A line that a crash cut short does not count.

    Args:
        start: only the attempts with this `start`.
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
    """The step that another attempt would begin at: that of the newest whole checkpoint."""
    name = (status.last_good_checkpoint if status else None) or "step-0"
    return int(name.rpartition("-")[2])


def why_not_again(status: Status | None, first_steps: list[int]) -> str | None:
    """Why another attempt of a run that ended is of no use; None where it may get on.

    Args:
        first_steps: the steps that its attempts began at, oldest first.
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
