"""Ranks on this machine, as processes that never outlive this one.

Each rank has its own session. So Ctrl-C at a terminal reaches this process only, which passes each request on once. If a rank
fails, all end: the others get a short time to notice and to say so, then SIGTERM, then SIGKILL.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence

from maskloom.launch.ending import (
    FAILED_GRACE_S,
    POLL_S,
    TERM_GRACE_S,
    WELL,
    Ended,
    Stop,
    exit_code,
    in_words,
    say_stopping,
)
from maskloom.launch.leftovers import tied
from maskloom.live import below_a_rank
from maskloom.progress import say, warn
from maskloom.status import EXIT_DONE, EXIT_HUNG, EXIT_STOPPED
from maskloom.world import LOOPBACK

Ranks = list["subprocess.Popen[bytes]"]


def run_ranks(
    command: Sequence[str],
    processes: int,
    port: int,
    stop: Stop,
    grace_s: float,
    failed_grace_s: float = FAILED_GRACE_S,
    environment: Mapping[str, str] = os.environ,
) -> Ended:
    """Start `command` once a rank, wait for all, and say how they ended. Called in the main thread.

    Args:
        port: that the ranks meet at.
        stop: passed on to the ranks once; they then have `grace_s` to save.
        grace_s: also for the others when a rank has ended well.
        failed_grace_s: for the others when a rank has failed.
    """
    ranks: Ranks = []
    try:
        for rank in range(processes):
            variables = {**environment, **_variables(rank, processes, port)}
            ranks.append(subprocess.Popen(tied(list(command)), env=variables, start_new_session=True))
        with below_a_rank():
            return _wait(ranks, stop, grace_s, failed_grace_s)
    finally:
        _signal(ranks, signal.SIGKILL)
        for process in ranks:
            process.wait()


def _variables(rank: int, processes: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": LOOPBACK,
        "MASTER_PORT": str(port),
    }


def _wait(ranks: Ranks, stop: Stop, grace_s: float, failed_grace_s: float) -> Ended:
    term_at_s = kill_at_s = math.inf
    failed: int | None = None
    is_passed_on = False
    while any(process.poll() is None for process in ranks):
        now_s = time.monotonic()
        if stop.signal and not is_passed_on:
            say_stopping(stop, grace_s)
            _signal(ranks, stop.signal)
            is_passed_on, kill_at_s = True, min(kill_at_s, now_s + grace_s)
        if failed is None and (failed := _first_failed(ranks)) is not None:
            warn(f"rank {failed} {_how(ranks[failed])}; the others have {failed_grace_s + TERM_GRACE_S:,.0f} s to end")
            term_at_s, kill_at_s = now_s + failed_grace_s, now_s + failed_grace_s + TERM_GRACE_S
        elif failed is None and math.isinf(kill_at_s) and any(process.poll() is not None for process in ranks):
            kill_at_s = now_s + grace_s
        if now_s >= term_at_s:
            _signal(ranks, signal.SIGTERM)
            term_at_s = math.inf
        if now_s >= kill_at_s or stop.urgent:
            return _kill(ranks, failed, stop)
        time.sleep(POLL_S)
    return _all_ended(ranks, _first_failed(ranks) if failed is None else failed, stop)


def _all_ended(ranks: Ranks, failed: int | None, stop: Stop) -> Ended:
    if failed is not None and stop.signal and ranks[failed].returncode == -stop.signal:
        return Ended(EXIT_STOPPED, "the ranks were asked to stop before they had begun")
    if failed is not None:
        return Ended(exit_code(ranks[failed].returncode), f"rank {failed} {_how(ranks[failed])}")
    if any(process.returncode == EXIT_STOPPED for process in ranks):
        return Ended(EXIT_STOPPED, "the ranks saved and stopped")
    return Ended(EXIT_DONE, "all ranks ended well")


def _kill(ranks: Ranks, failed: int | None, stop: Stop) -> Ended:
    """End the ranks that did not end in time."""
    late = [rank for rank, process in enumerate(ranks) if process.poll() is None]
    _signal(ranks, signal.SIGKILL)
    names = f"rank{'s' * (len(late) > 1)} {', '.join(map(str, late))}"
    if failed is not None:
        say(f"{names} did not end by themselves and were killed")
        return Ended(exit_code(ranks[failed].returncode), f"rank {failed} {_how(ranks[failed])}")
    if stop.urgent:
        return Ended(128 + signal.SIGINT, f"{names} killed: asked to stop twice")
    if stop.signal:
        return Ended(128 + signal.SIGKILL, f"{names} did not stop in time, and was killed")
    return Ended(EXIT_HUNG, f"{names} did not end although others had, and was killed")


def _first_failed(ranks: Ranks) -> int | None:
    """The rank that failed first. Of several since the last look: one that a signal ended, for that is a cause."""
    bad = [rank for rank, process in enumerate(ranks) if process.poll() not in (None, *WELL)]
    return min(bad, key=lambda rank: (ranks[rank].returncode > 0, rank), default=None)


def _how(process: subprocess.Popen[bytes]) -> str:
    return in_words(exit_code(process.returncode))


def _signal(ranks: Ranks, number: signal.Signals) -> None:
    for process in ranks:
        if process.poll() is None:
            process.send_signal(number)
