"""The program that a host runs to tell about itself: `python -m maskloom.launch.doctor.look`.

A request comes as a JSON line on stdin. Two lines go to stdout: the host's clock, at once, and its facts. Those take seconds, so
`machine` is imported after the first line: it imports torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from maskloom.program import end, run_program

Level = Literal["ok", "warn", "fail"]
Line = tuple[Level, str, str]
"""A level, what was found, and what to do (empty if all is well)."""


@dataclass(frozen=True)
class Request:
    """What is asked of a host."""

    number: int = 0  # of the host, in the hostfile's order
    slots: int = 1  # ranks of this host
    world_size: int = 1  # ranks of all hosts
    first_rank: int = 0  # of this host
    config: str = ""  # of the run, as given
    overrides: tuple[str, ...] = ()
    run_dir: str = ""  # empty if the configuration could not be read
    left_file: str = ""  # that the asking machine made in the run's folder; empty if it could not
    blocks: int = 16  # of each corpus, to be read and verified
    port: int = 0  # that the first rank would like to listen on; 0 on other hosts
    needs_port: bool = False  # no other port will do
    environment: dict[str, str] = field(default_factory=dict)  # of a rank on this host


@dataclass(frozen=True)
class Facts:
    """What a host tells."""

    lines: tuple[tuple[str, Line], ...]  # checks, and what they found here
    same: dict[str, str]  # checks, and values that must be the same on every host
    gpus: int = 0  # that torch can use
    unusable_gpus: tuple[str, str] | None = None  # GPUs that torch cannot use and why, and what to do
    spare_port: int = 0  # a free one


REQUEST, FACTS = TypeAdapter(Request), TypeAdapter(Facts)
"""To and from JSON."""


def main() -> int:
    """Answer one request. Returns the exit code: 0 whatever was found."""
    request = REQUEST.validate_json(sys.stdin.readline())
    end_with_stdin()
    print(json.dumps({"unix_s": time.time()}), flush=True)
    os.environ |= request.environment
    with contextlib.redirect_stdout(sys.stderr):  # what libraries print
        from maskloom.launch.doctor.machine import look

        answer = FACTS.dump_json(look(request)).decode()
    print(answer, flush=True)
    return 0


def end_with_stdin() -> None:
    """From now on, end this program and what it started once whoever asked is gone."""

    def watch() -> None:
        sys.stdin.read()
        end(1)

    threading.Thread(target=watch, daemon=True).start()


def nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists, as an absolute path."""
    folder = folder.absolute()
    return next((path for path in (folder, *folder.parents) if path.exists()), folder)


if __name__ == "__main__":
    run_program("maskloom.launch.doctor.look", main)
