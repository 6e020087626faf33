"""The thread of every rank that never waits: it hears requests to stop, shows that the rank lives, and ends it when it hangs.

    signals, RUN/stop   -> a request; the ranks agree on it with the next step (stopping.py has the whole way)
    heartbeats          -> the ranks' store, every two seconds; nobody reads them until something is wrong (heartbeats.py)
    no tick of the main thread for `timeouts` -> stacks of all ranks to their logs, who is to blame, exit code 76
    an error of the main thread               -> if it is a collective's, which rank was lost; exit code 1

The first rank that fails writes the status and says so in one line. The others add what they saw to their logs. Nothing here
waits without a bound: each survivor ends, even if the process that is gone kept the store.

What it cannot do: end a rank whose main thread holds the interpreter's lock in foreign code. The other ranks name that rank, and
what started it has to kill it.
"""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from importlib.metadata import version
from types import TracebackType
from typing import TYPE_CHECKING

from maskloom.errors import UserError, restart_may_help
from maskloom.program import EXIT_INTERRUPTED, end
from maskloom.progress import complain
from maskloom.status import EXIT_FAILED, EXIT_HUNG, EXIT_STOPPED, REFRESH_S
from maskloom.train.rank.heartbeats import (
    BEAT_S,
    LOOK_S,
    Beat,
    Board,
    NoAnswer,
    Pulse,
    blame,
    whereabouts_of_main_thread,
)
from maskloom.train.rank.log import RankLog
from maskloom.train.rank.stopping import Requests, read_stop_file
from maskloom.train.run_lock import InUse

if TYPE_CHECKING:  # heavy: signals are heard before these are imported
    from maskloom.config import Timeouts
    from maskloom.train.run_dir import RunDir

POLL_S = 0.5
SUSPENDED_S = 5.0
"""If a poll took so much longer, the whole process stood still."""
LOOKERS = 8
"""At an alarm so many ranks read the beats of all; in a large run the others take what these found."""
GROUPS_MORE_S = 30.0
LINGER_S = 3.0
"""For the others, who still look into rank 0's store, and end as soon as one of them has reported."""
OPENING_S = 30.0
"""Longest wait of a stop for the run's folder to be opened; it is asked for again at the next look."""
PACKAGES = ("maskloom", "torch", "deepspeed")
LONG_SECTIONS = ("start", "load", "save", "report")
SIGNS_OF_A_PEER = (
    "gloo",
    "NCCL",
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
)


class Watch:
    """Entered in the main thread, as early as may be; then `take_up` when the run's folder is open, `join` when the ranks met.

    Attributes:
        requests: to stop.
        pulse: what the main thread is at; it says so itself.
    """

    def __init__(self) -> None:
        self.requests = Requests()
        self.pulse = Pulse()
        self.log: RankLog | None = None
        self.run: RunDir | None = None
        self.board: Board | None = None
        self._timeouts: Timeouts | None = None
        self._has_met, self._is_alarmed, self._first_step_ends = False, False, True
        self._beats = 0
        self._due_s = dict.fromkeys(("beat", "stop file", "refresh"), 0.0)
        self._ended, self._ending = threading.Event(), threading.Lock()
        # Held while the run's folder is opened: a stop in the middle of it would leave a part of the folder.
        self.opening = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self.requests.__enter__()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self.requests.__exit__(kind, error, trace)
        if self.log is not None:
            self.log.close()
        if self.run is not None:
            self.run.close()

    def doing(self) -> tuple[str, int]:
        """What this rank does, for the live line: who pressed Ctrl-C in a long step sees that it was heard."""
        words, step = self.pulse.doing()
        return ("stopping" if words == "training" and self.requests.reason else words), step

    def take_up(self, run: RunDir, timeouts: Timeouts) -> None:
        """The run's folder is open: from here on the limits of time hold."""
        self.log = RankLog(run.world.rank)
        self.run, self._timeouts = run, timeouts
        self.pulse.tick("start")

    def join(self) -> None:
        """The ranks have met: heartbeats begin, and a stop is agreed among them."""
        assert self.run is not None
        world = self.run.world
        if world.size > 1:
            self.board = Board(world.master_addr, world.master_port, f"maskloom/{self.run.key}")
        self._has_met = True

    @contextlib.contextmanager
    def section(self, name: str, set_timeouts: Callable[[float], None]) -> Iterator[None]:
        """What the main thread does in the block, with the limits that hold for it; `set_timeouts` sets those of collectives."""
        self.pulse.tick(name)
        set_timeouts(self._groups_s())
        yield
        self.pulse.tick("log")
        set_timeouts(self._groups_s())

    def keep_limits(self, set_timeouts: Callable[[float], None]) -> None:
        """After a step: the first one ends the long limits of the start."""
        if self._first_step_ends:
            self._first_step_ends = False
            set_timeouts(self._groups_s())

    def log_to(self, run: RunDir) -> None:
        """The folder is a run's: this rank's log has its place there."""
        assert self.log is not None
        versions = f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in PACKAGES)
        self.log.open(
            run.folder, f"attempt {run.attempt}: {run.rank_name(run.world.rank)} of {run.world.size}, {versions}"
        )

    def limit_s(self) -> float:
        """How long the main thread may be quiet where it is."""
        assert self._timeouts is not None
        is_long = not self.pulse.has_stepped or self.pulse.section in LONG_SECTIONS
        return max(self._timeouts.start_s, self._timeouts.train_s) if is_long else self._timeouts.train_s

    def _groups_s(self) -> float:
        """Longest wait of a collective: longer than the watch waits, which has more to say when it ends."""
        return self.limit_s() * 1.1 + GROUPS_MORE_S

    def me(self) -> str:
        rank = self.run.world.rank if self.run else os.environ.get("RANK", "0")
        return f"rank {rank} on {socket.gethostname()}"

    def fail(self, error: BaseException) -> int:
        """Say why the run ends, in the main thread, unless another rank did. Returns the exit code."""
        assert self.log is not None and self.run is not None
        self.pulse.tick("end")
        self._claim_end()
        self.log.add_traceback(error)
        is_expected = isinstance(error, UserError | OSError)
        said = str(error) if is_expected else f"{type(error).__name__}: {error}"
        if is_a_peers(error) and self.board is not None:
            noticed = str(error).strip().split("\n")[0].split(". This is typically")[0]
            self._report(f"{self._culprit(is_hung=False)}. {self.me()} noticed: {noticed}", "Look at that host.", True)
        elif isinstance(error, InUse):  # another process trains: nothing of the run failed
            (complain if self.run.is_writer else self.log.write)(f"maskloom: {self.me()}: {error}")
        else:
            if not is_expected and (self.log.path is None or self.run.world.size == 1):
                traceback.print_exception(error)
            place = f" The traceback is in {self.log.path}." if self.log.path and not is_expected else ""
            can_retry = restart_may_help(error)
            advice = place.strip() if can_retry else "Correct that first."
            is_new = not self.pulse.has_stepped and self.run.last_good_checkpoint() is None
            if isinstance(error, MemoryError) and is_new:  # these settings never worked: it would come again
                can_retry, advice = False, f"The start needs more memory than there is: lower the settings.{place}"
            self._report(f"{self.me()}: {said}", advice, can_retry)
        self._leave()
        return EXIT_FAILED

    def _claim_end(self) -> None:
        """In the main thread: it ends this rank. If the watch thread does so already, wait for it."""
        if not self._ending.acquire(blocking=False):
            threading.Event().wait()

    def _watch(self) -> None:
        while not self._ended.is_set():
            began_s = time.monotonic()
            self.requests.wait(POLL_S)
            stood_still_s = time.monotonic() - began_s - POLL_S
            if stood_still_s > SUSPENDED_S:
                self.pulse.forgive(stood_still_s)
            try:
                self._look_round()
            except Exception as error:  # it must keep watching
                if self.log is not None:
                    self.log.add_traceback(error)

    def _look_round(self) -> None:
        if self.requests.insists:
            self._end_at_once(EXIT_INTERRUPTED, "interrupted a second time: what was not saved is lost")
        if self.requests.reason is not None and not self._has_met and self.opening.acquire(timeout=OPENING_S):
            self._end_at_once(EXIT_STOPPED, f"stopped by {self.requests.reason} before the start; nothing was changed")
        if self.run is None:
            return
        if self._has_met and self.run.is_writer and self._is_due("stop file", 1.0):
            self.run.touch()
            text = read_stop_file(self.run.folder)
            if text is not None:
                self.requests.ask(f"the file {self.run.folder / 'stop'} ({text})")
        if self._is_due("refresh", REFRESH_S):
            with contextlib.suppress(OSError):  # a full disk: the next time
                self.run.refresh(self.pulse.step)
        if self.board is not None and self._is_due("beat", BEAT_S):
            self._beat()
        if self.pulse.quiet_s() > self.limit_s() and not self._ended.is_set():
            self._expire()

    def _is_due(self, what: str, every_s: float) -> bool:
        now_s = time.monotonic()
        if now_s < self._due_s[what]:
            return False
        self._due_s[what] = now_s + every_s
        return True

    def _beat(self) -> None:
        """A sign of life; and the stacks, if another rank asks for them."""
        assert self.board is not None and self.run is not None and self.log is not None
        try:
            self.board.put(self._own_beat())
            if not self._is_alarmed and self.board.is_alarmed():
                self._is_alarmed = True
                self.log.add_stacks("asked for by another rank, which waited too long")
        except NoAnswer:  # the main thread, or its limit, finds out
            self._due_s["beat"] += LOOK_S

    def _own_beat(self) -> Beat:
        assert self.run is not None
        self._beats += 1
        pulse, rank = self.pulse, self.run.world.rank
        quiet_s = pulse.quiet_s()
        place, waits = whereabouts_of_main_thread() if quiet_s > BEAT_S else ("", False)
        host, pid = socket.gethostname(), os.getpid()
        return Beat(
            rank, host, pid, self._beats, pulse.step, pulse.section, pulse.ticks, round(quiet_s, 1), place, waits
        )

    def _expire(self) -> None:
        """The main thread has been quiet for too long: end this rank."""
        assert self.run is not None and self.log is not None
        if not self._ending.acquire(blocking=False):  # the main thread ends the rank, and hangs in it
            end(EXIT_FAILED)
        self._is_alarmed = True
        what = f"nothing happened for {self.limit_s():g} s (timeouts) on {self.me()}, after step {self.pulse.step}"
        self.log.add_stacks(what)
        culprit = self._culprit(is_hung=True) if self.board is not None else f"in section '{self.pulse.section}'"
        self._report(
            f"{what}: {culprit}", f"The stacks of every rank that lives are in {self.run.folder / 'logs'}.", True
        )
        self._leave()
        end(EXIT_HUNG)

    def _culprit(self, is_hung: bool) -> str:
        """Which rank is to blame, from the signs of life; asks all ranks for their stacks if one hangs."""
        assert self.board is not None and self.run is not None
        world = self.run.world
        try:
            lookers = self.board.raise_alarm() if is_hung else 0
            before = self.board.beats(world.size)
            end_s = time.monotonic() + (LOOK_S if lookers <= LOOKERS else 2 * LOOK_S)
            while time.monotonic() < end_s and self.run.failure() is None:
                time.sleep(POLL_S)
                if is_hung and self._is_due("beat", BEAT_S):  # in the watch thread, which beats
                    self.board.put(self._own_beat())
            if lookers > LOOKERS and self.run.failure() is not None:
                return "another rank found out"
            names = [self.run.rank_name(rank) for rank in range(world.size)]
            return blame(before, self.board.beats(world.size), world.rank, names)
        except NoAnswer as error:
            self.board = None
            keeper = self.run.rank_name(0)
            if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
                keeper = f"torchrun's agent on {world.master_addr}"
            return f"{keeper} does not answer ({error}): stopped, killed or cut off"

    def _report(self, reason: str, advice: str, can_retry: bool) -> None:
        """Record a failure, and say it in one line if this rank is the first."""
        assert self.run is not None and self.log is not None
        checkpoint = self.run.last_good_checkpoint()
        if can_retry:
            origin = checkpoint or "the beginning"
            advice = f"{advice} The same command resumes from {origin}.".strip()
        elif checkpoint:
            advice = f"{advice} The last good checkpoint is {checkpoint}."
        self.run.step = max(self.run.step, self.pulse.step)
        line = f"maskloom: failed after step {self.run.step:,} of {self.run.total_steps:,}: {reason}. {advice}"
        is_first = self.run.fail(reason, advice, can_retry)
        if is_first is None:
            is_first = True
            with contextlib.suppress(NoAnswer):
                is_first = self.board is None or self.board.claim_report()
        if is_first:
            complain(line)
        else:
            self.log.write(line)

    def _leave(self) -> None:
        """Rank 0 keeps the store, and stays a little for those who still look into it."""
        if self.board is None or self.run is None:
            return
        with contextlib.suppress(NoAnswer):
            left = self.board.leave()
            end_s = time.monotonic() + LINGER_S
            while self.run.world.is_first and left < self.run.world.size and time.monotonic() < end_s:
                time.sleep(POLL_S)
                left = self.board.left()

    def _end_at_once(self, code: int, why: str) -> None:
        try:
            complain(f"maskloom: {self.me()}: {why}")
            if self.run is not None:
                if code == EXIT_STOPPED:
                    self.run.close()
                else:
                    self.run.fail(f"{self.me()}: {why}", "", True)
        finally:  # whatever could not be said or noted
            end(code)


def is_a_peers(error: BaseException) -> bool:
    """Whether an error is a collective's or the store's: a consequence of what happened to another rank, most likely."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS_OF_A_PEER)
    )
