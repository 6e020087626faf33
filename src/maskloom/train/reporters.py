"""Reporters: who else is told what a run logs, such as a service that shows curves (`logging.reporters`).

A reporter is one row of the table below. It gives a function that is called with the values of every line, by the tags of
`maskloom.tags`, and the step. It is called on the first rank, with finite numbers only. An error of it is said once, and from
then on it is not called any more: nothing that it does ends the run.

One of your own is a module that calls `add`, named on the command line: `maskloom train CONFIG --import MODULE`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maskloom.config_sections import add_reporter
from maskloom.errors import UserError
from maskloom.progress import warn
from maskloom.redaction import one_line
from maskloom.train.about import Run

if TYPE_CHECKING:  # torch comes with it: a module that adds a reporter is to be imported quickly
    from maskloom.distributed import World

Log = Callable[[dict[str, float], int], None]
"""Takes values by their tags, and the step."""

FINISH_TIMEOUT_S = 60.0
"""Longest wait for what was not sent yet when the run ends."""


def _nothing() -> None:
    """For reporters that need no check and no end."""


@dataclass(frozen=True)
class Reporter:
    """One kind of reporter.

    Attributes:
        name: how `logging.reporters` names it.
        start: called once an attempt, before its first step; gives the function that is called with every line.
        finish: called when the attempt ends with all lines logged.
        check: called before any rank starts. It raises a UserError if the reporter cannot work here.
    """

    name: str
    start: Callable[[Run], Log]
    finish: Callable[[], None] = _nothing
    check: Callable[[], None] = _nothing


def _check_wandb() -> None:
    """Raises UserError without the package, and without a key for the service: W&B would ask for it, and wait."""
    if importlib.util.find_spec("wandb") is None:
        raise UserError("logging.reporters wandb needs the package wandb: pip install 'maskloom[wandb]'")
    import wandb

    is_in_use = "WANDB_SERVICE" in os.environ
    try:
        is_offline = wandb.setup(wandb.Settings(silent=True)).settings.mode in ("offline", "dryrun", "disabled")
        is_possible = is_offline or wandb.login(prompt=False, verify=False)
    finally:
        if not is_in_use:  # by the caller of `pretrain`: the process that W&B started is not for ranks that begin later
            wandb.teardown()
    if not is_possible:
        raise UserError(
            "logging.reporters wandb finds no key for W&B: run `wandb login`, or set WANDB_API_KEY. To send nothing, set "
            "WANDB_MODE=offline"
        )


def _start_wandb(run: Run) -> Log:
    """A run of W&B with our run's id: each attempt continues it. W&B's own step never falls, so ours is a value beside it, and
    the charts' x axis. The project is WANDB_PROJECT, or else `maskloom`."""
    import wandb

    settings = wandb.Settings(
        console="off",  # what the terminal shows stays here
        disable_code=True,
        disable_git=True,
        silent=True,
        x_disable_meta=True,  # the command line, which may hold keys
        x_save_requirements=False,
        finish_timeout=FINISH_TIMEOUT_S,
    )
    is_online = wandb.setup().settings.mode == "online"
    board = wandb.init(
        project=os.environ.get("WANDB_PROJECT") or "maskloom",
        id=run.id,
        name=os.environ.get("WANDB_NAME") or run.name,
        resume="allow" if is_online else None,  # offline, equal ids are joined when they are sent
        dir=str(run.folder),
        config=dict(run.config),
        allow_val_change=True,
        settings=settings,
    )
    board.define_metric("*", step_metric="step")

    def log(values: dict[str, float], step: int) -> None:
        board.log({**values, "step": step})

    return log


def _finish_wandb() -> None:
    import wandb

    wandb.finish()


REPORTERS: dict[str, Reporter] = {
    "wandb": Reporter("wandb", _start_wandb, _finish_wandb, _check_wandb),
}
"""`logging.reporters` -> all that is known of that reporter."""


def add(reporter: Reporter) -> None:
    """Add a row: configurations can name it from then on.

    Raises:
        ValueError: the name is taken.
    """
    add_reporter(reporter.name)
    REPORTERS[reporter.name] = reporter


def check(names: Sequence[str], world: World) -> None:
    """On the first rank, raises UserError if a reporter cannot work here."""
    for name in names if world.is_first else ():
        REPORTERS[name].check()


class Reporters:
    """The reporters of an attempt, on the first rank. `names` is `logging.reporters`."""

    def __init__(self, names: Sequence[str], run: Run) -> None:
        self._logs: dict[str, Log] = {}
        for name in names:
            with self._surviving(name):
                self._logs[name] = REPORTERS[name].start(run)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Tell all of them. What is not finite is left out."""
        finite = {tag: value for tag, value in values.items() if math.isfinite(value)}
        for name, tell in list(self._logs.items()):
            with self._surviving(name):
                tell(dict(finite), step)

    def finish(self) -> None:
        for name in list(self._logs):
            with self._surviving(name):
                REPORTERS[name].finish()
        self._logs = {}

    @contextlib.contextmanager
    def _surviving(self, name: str) -> Iterator[None]:
        try:
            yield
        except (Exception, SystemExit) as error:  # an exit would end the run as if it was done
            self._logs.pop(name, None)
            said = one_line(f"{type(error).__name__}: {error}")
            warn(f"the reporter {name} failed ({said}): the run continues without it")
