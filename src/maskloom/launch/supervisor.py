"""Attempt after attempt, until the run is done, is asked to stop, or another attempt is of no use.

    check the hosts -> a port -> ranks start, train and end -> status.json says how it stands -> again?

Exit codes of launchers cannot be trusted, and ranks that are killed cannot say anything. So status.json decides whether the run
is done and whether it may be started again. If it still says `running` after the last rank has ended, the supervisor writes how
the run ended.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from maskloom.config_file import load_config
from maskloom.errors import UserError
from maskloom.launch.ending import Ended, Stop
from maskloom.launch.hostfile import Host
from maskloom.launch.leftovers import end_leftovers
from maskloom.launch.local import run_ranks
from maskloom.launch.probe import free_port, preferred_port, probe_hosts
from maskloom.launch.remote import run_on_hosts
from maskloom.launch.ssh import Ssh
from maskloom.progress import say, warn
from maskloom.status import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_STOPPED,
    START,
    Status,
    attempt_steps,
    next_step,
    read_status,
    stands_still,
    why_not_again,
)
from maskloom.train.run_lock import InUse, RunLock, holder_of, in_use

PAUSES_S = (2.0, 10.0, 30.0, 60.0)
"""Before the first restart, the second, and so on; the last one before all others."""
WRONG_USAGE = 2
NOWHERE = 69
"""Exit code if the ranks can run nowhere: EX_UNAVAILABLE of sysexits.h."""
NO_RESTART = "no-restart"
"""If a file of this name is in the run's folder, the run is not started again. Anybody may make it."""


class Launch(Protocol):
    """One way of starting ranks."""

    def prepare(self, attempt: int) -> str:
        """Choose where the ranks run. Returns that in words. Raises UserError if they can run nowhere."""

    def start(self, stop: Stop, name: str) -> Ended:
        """Run the ranks where `prepare` said, with `name` as their START, until all have ended."""


class OnThisMachine:
    """Ranks on this machine. `command` is a rank's."""

    def __init__(self, command: Sequence[str], processes: int, run: Path, grace_s: float) -> None:
        self.command, self.processes, self.run, self.grace_s = command, processes, run, grace_s
        self._port = 0

    def prepare(self, attempt: int) -> str:
        self._port = free_port(preferred_port(self.run, attempt))
        return f"{self.processes} rank(s) on this machine"

    def start(self, stop: Stop, name: str) -> Ended:
        variables = {**os.environ, START: name}
        return run_ranks(self.command, self.processes, self._port, stop, self.grace_s, environment=variables)


class OnHosts:
    """Ranks on the hosts of a hostfile. The first attempt needs all hosts; later ones use those that can take ranks.

    Args:
        arguments: of `maskloom.train`.
        master_addr: of the first host, if the others reach it by another name than the ssh_config has.
    """

    def __init__(
        self,
        hosts: Sequence[Host],
        arguments: Sequence[str],
        run: Path,
        grace_s: float,
        ssh: Ssh,
        master_addr: str | None,
    ) -> None:
        self.hosts, self.arguments, self.run, self.grace_s = tuple(hosts), arguments, run, grace_s
        self.ssh, self.master_addr = ssh, master_addr
        self.token = secrets.token_hex(8)
        self._fit: tuple[Host, ...] = ()
        self._master = ("", 0)

    def prepare(self, attempt: int) -> str:
        found = probe_hosts(self.hosts, self.ssh, self.run, preferred_port(self.run, attempt))
        unfit = [f"  {host.name}: {look.fault}" for host, look in zip(self.hosts, found, strict=True) if look.fault]
        if unfit and (attempt == 1 or len(unfit) == len(self.hosts)):
            raise UserError("hosts that cannot take ranks:\n" + "\n".join(unfit))
        if unfit:
            warn("starting without the hosts that cannot take ranks:\n" + "\n".join(unfit))
        fit = [(host, look.port) for host, look in zip(self.hosts, found, strict=True) if not look.fault]
        first, port = fit[0]
        given = self.master_addr if first is self.hosts[0] else None
        self._fit = tuple(host for host, _ in fit)
        if attempt > 1:  # on a host that could not be reached then, ranks may still wait for the others
            end_leftovers(self._fit, self.token, self.ssh, grace_s=0.0)
        self._master = (given or self.ssh.address(first.name), port)
        names = ", ".join(f"{host.name} ({host.slots})" for host in self._fit)
        return f"{sum(host.slots for host in self._fit)} rank(s) on {names}; they meet at {self._master[0]}:{port}"

    def start(self, stop: Stop, name: str) -> Ended:
        return run_on_hosts(
            self._fit,
            self.hosts,
            self.token,
            self.arguments,
            self.run,
            self._master,
            self.ssh,
            stop,
            self.grace_s,
            name=name,
        )


def supervise(launch: Launch, run: Path, max_restarts: int, stop: Stop, pauses_s: Sequence[float] = PAUSES_S) -> int:
    """Start a run, and again after attempts that failed, at most `max_restarts` times. Returns the honest exit code.

    Raises:
        InUse: another process trains in the run's folder.
        UserError: the first attempt cannot start.
    """
    first_steps: list[int] = []
    names: list[str] = []
    while True:
        attempt = len(first_steps) + 1
        if (holder := holder_of(run)) and holder.start not in names:
            if attempt == 1:
                raise in_use(run, holder)
            say(f"no other attempt: {in_use(run, holder)}")
            return EXIT_FAILED
        names.append(secrets.token_hex(8))
        before = known_status(run)
        ended = _attempt(launch, attempt, max_restarts, stop, names[-1])
        outcome = settle(run, names[-1], ended)
        steps = attempt_steps(run, names[-1])
        first_steps.append(steps[-1] if steps else next_step(before))
        forbidden = f"{run / NO_RESTART} exists" if (run / NO_RESTART).exists() else None
        why = no_other(outcome, first_steps, max_restarts, bool(stop.signal), forbidden)
        if why is not None:
            say(conclusion(run, outcome, why if max_restarts else ""))
            return final_code(outcome)
        pause_s = pauses_s[min(attempt, len(pauses_s)) - 1]
        say(
            f"attempt {attempt} failed: {ended.what}. Another one in {pause_s:.0f} s, from step {next_step(outcome.status):,}"
        )
        stop.wait(pause_s)


@dataclass(frozen=True)
class Outcome:
    """How a run stands after an attempt.

    Attributes:
        ended: how the attempt's ranks ended.
        status: of the run; None if it has none.
        is_news: whether this attempt wrote it. If not, its ranks did not begin to train.
    """

    ended: Ended
    status: Status | None
    is_news: bool

    @property
    def state(self) -> str:
        """The state that this attempt ended in; empty if it did not begin."""
        return self.status.state if self.status and self.is_news else ""


def no_other(
    outcome: Outcome, first_steps: Sequence[int], max_restarts: int, is_asked_to_stop: bool, forbidden: str | None
) -> str | None:
    """Why no other attempt is made; None if one is.

    Args:
        first_steps: the steps that the attempts began at, oldest first.
        forbidden: why nobody may start the run again.
    """
    if outcome.state == "done":
        return "it is done"
    is_stopped = outcome.state == "stopped" or (not outcome.is_news and outcome.ended.code == EXIT_STOPPED)
    if is_asked_to_stop or is_stopped:
        return "it was asked to stop"
    if not outcome.is_news and outcome.ended.code in (EXIT_DONE, EXIT_FAILED, WRONG_USAGE):
        return "it did not begin"
    if outcome.is_news and (why := why_not_again(outcome.status, list(first_steps))):
        return why
    if stands_still(list(first_steps)) and next_step(outcome.status) <= first_steps[-1]:
        return f"{len(first_steps)} attempts got nowhere"
    if forbidden:
        return forbidden
    return f"{max_restarts} restarts were allowed" if len(first_steps) > max_restarts else None


def final_code(outcome: Outcome) -> int:
    """0 only if the run is done and its ranks ended well."""
    code = outcome.ended.code
    if outcome.state == "done" and code == EXIT_DONE:
        return EXIT_DONE
    if outcome.state == "stopped" or code == EXIT_STOPPED:
        return EXIT_STOPPED
    return code or EXIT_FAILED


def conclusion(run: Path, outcome: Outcome, why: str) -> str:
    """The last line: how it ended, and what to do."""
    status, ended = outcome.status, outcome.ended
    ending = f" (no other attempt: {why})" if why and outcome.state != "done" else ""
    if status is None or not outcome.is_news:
        return f"{run}: this attempt did not begin to train: {ended.what}{ending}. What is said above tells why"
    at = f"at step {status.step:,} of {status.total_steps:,}"
    if status.state == "done":
        early = f": {status.reason}" if status.reason else ""
        return f"{run}: done {at}" + (f", but {ended.what}" if ended.code else early)
    if status.state == "stopped":
        return f"{run}: stopped {at}. The same command resumes from {status.last_good_checkpoint or 'the beginning'}"
    advice = status.advice or "what is said above, or in its logs, tells why"
    return f"{run}: failed {at}: {status.reason or ended.what}{ending}. {advice}"


def settle(run: Path, name: str, ended: Ended) -> Outcome:
    """How a run stands after an attempt. If its ranks were killed and could not write that, it is written for them.

    Args:
        name: the START of the attempt's ranks; empty if they had none.
    """
    status = known_status(run)
    is_open = status.state == "running" if status else (run / "config.yaml").exists()
    if not is_open:
        return Outcome(ended, status, _is_of(status, name))
    try:
        lock = RunLock(run)  # a file server keeps that of a machine that is gone for a while
    except InUse:  # another process trains in this folder: its status
        return Outcome(ended, status, False)
    try:
        status = known_status(run) or Status("failed", 0, load_config(run / "config.yaml").total_steps, 1, start=name)
        if status.state != "running":  # written since
            return Outcome(ended, status, _is_of(status, name))
        resumes = f"The same command resumes from {status.last_good_checkpoint or 'the beginning'}"
        status = replace(status, state="failed", reason=ended.what, advice=resumes, can_retry=True)
        status.write(run)
        return Outcome(ended, known_status(run), True)
    except UserError:  # a config.yaml that cannot be read: the next start says so
        return Outcome(ended, status, False)
    finally:
        lock.release()


def _is_of(status: Status | None, name: str) -> bool:
    """Whether the ranks of this START wrote a status."""
    return status is not None and bool(name) and status.start == name


def known_status(run: Path) -> Status | None:
    """The status of a run; None if it has none, or none that can be read."""
    try:
        return read_status(run)
    except UserError as error:
        warn(str(error))
        return None


def _attempt(launch: Launch, attempt: int, max_restarts: int, stop: Stop, name: str) -> Ended:
    """One attempt. A request to stop that came before it is honoured at once."""
    try:
        where = launch.prepare(attempt)
    except (UserError, OSError) as error:  # hosts, or ports
        if attempt == 1:
            raise
        return Ended(NOWHERE, str(error))
    if stop.signal:
        return Ended(EXIT_STOPPED, "it was asked to stop before the ranks were started")
    say(f"attempt {attempt} of at most {max_restarts + 1}: {where}" if max_restarts else f"starting {where}")
    return launch.start(stop, name)
