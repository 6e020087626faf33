"""CPU-seconds of training on a rank, for `maskloom train --import speedrun.meter`.

What counts is all CPU time, of the user and of the system, from the first batch that a rank asks for to the end of its loop:

- of all threads of the rank, so also what it spends while it waits for the others;
- of its reader processes, their start included, and of any other process that it starts, such as a compiler.

What does not count: imports and the set-up of the model before the loop, evaluations, and checkpoints (the call; what a thread
writes later, while steps run, does count). Each rank writes its figures to `rank-N.json` in the folder that `SPEEDRUN_METER`
names.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

VARIABLE = "SPEEDRUN_METER"
NOT_TRAINING = ("log_evaluation", "save")
"""Functions that the loop calls, by their names there, whose CPU-seconds do not count."""


def spent_s() -> float:
    """CPU-seconds of this process, of its children that live, and of those that have ended."""
    ended = os.times()
    spent = time.process_time() + ended.children_user + ended.children_system
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:  # it has just ended
            continue
        spent += times.user + times.system + times.children_user + times.children_system
    return spent


class Meter:
    """CPU-seconds between two moments of a rank, without what is excluded.

    Args:
        clock: CPU-seconds spent so far.
    """

    def __init__(self, clock: Callable[[], float] = spent_s) -> None:
        self.clock, self.began_s, self.excluded_s = clock, 0.0, 0.0

    def begin(self) -> None:
        self.began_s, self.excluded_s = self.clock(), 0.0

    def excluding(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose CPU-seconds do not count."""

        @functools.wraps(function)
        def called(*arguments: Any, **named: Any) -> Any:
            began_s = self.clock()
            try:
                return function(*arguments, **named)
            finally:
                self.excluded_s += self.clock() - began_s

        return called

    def read_s(self) -> float:
        """CPU-seconds since `begin` that count."""
        return self.clock() - self.began_s - self.excluded_s


def install(folder: Path, rank: int) -> None:
    """Meter the training loop of this process."""
    from maskloom.train import loop as module

    meter, loop = Meter(), module.loop

    def metered_loop(trainer: Any, *arguments: Any) -> bool:
        meter.begin()
        stopped = loop(trainer, *arguments)
        figures = {"rank": rank, "step": trainer.step, "cpu_s": meter.read_s()}
        (folder / f"rank-{rank}.json").write_text(json.dumps(figures) + "\n", encoding="utf-8")
        return stopped

    module.loop = metered_loop
    for name in NOT_TRAINING:
        setattr(module, name, meter.excluding(getattr(module, name)))


def may_train() -> bool:
    """Whether this process may be a rank: a reader is not, and it imports this module too."""
    return VARIABLE in os.environ and multiprocessing.parent_process() is None


if may_train():
    install(Path(os.environ[VARIABLE]), int(os.environ.get("RANK", "0")))  # a single rank is the command itself
