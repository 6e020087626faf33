"""Save a checkpoint while training continues.

    start     every rank copies its state to memory; its thread writes the files, flushes them to the disk, reads them back for
              their digests, and leaves those in rank-N.json beside them
    follow    with each step the ranks say `saved` or `not_saved` of their parts; when all others have said `saved`, the first
              rank's thread writes data.json and manifest.json, renames the folder, and says `saved` last
    finish    waits for all of it, together

So a checkpoint that every rank has heard of is on the disk, and all ranks know of it, or of its failure, after the same step.
Nothing here raises on one rank alone. A save that failed leaves nothing behind; it is a warning until it is the third in a row,
or the last of the run.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from maskloom.config import Checkpoint
from maskloom.distributed import World, gather_objects
from maskloom.errors import SaveFailed
from maskloom.hardware import free_disk_bytes, free_memory_bytes
from maskloom.progress import say, warn
from maskloom.train.checkpoint.state import State, folder_of, saved_folders, step_of
from maskloom.train.checkpoint.writing import publish, write_parts
from maskloom.train.engine.engine import Engine
from maskloom.train.rank.notices import Notices

MOST_FAILURES = 3
ROOM_FACTOR = 1.02  # a file is its tensors and little more
SPARE_DISK_BYTES = 16 << 20  # for metrics, logs and status
SPARE_MEMORY_SHARE = 0.1


class Saver:
    """The saves of a run on one rank.

    Attributes:
        last_good: name of the newest checkpoint that is known to be whole.
        steps: of the checkpoints that are known to be whole, and of the one that is being written; some may be removed since.
        failures: saves in a row that failed, and why the last one did; the same on every rank.
    """

    def __init__(self, run: Path, settings: Checkpoint, world: World, notices: Notices) -> None:
        self.run, self.settings, self.world, self.notices = run, settings, world, notices
        self.last_good: str | None = None
        self.steps: set[int] = set()
        self.failures: list[str] = []
        self._state: State | None = None  # of the save that is under way
        self._part: _Task | None = None
        self._publishing: _Task | None = None
        self._has_heard = False
        self._has_warned = False

    def look(self) -> None:
        """Learn of the checkpoints that the run has; every rank calls it."""
        mine = [step_of(folder) for folder in saved_folders(self.run)] if self.world.is_first else []
        self.steps = set(gather_objects(mine, self.world)[0])

    def start(self, engine: Engine, state: State) -> None:
        """Begin to save; every rank calls it. A save that is still under way is waited for first.

        Raises:
            SaveFailed: this or the one before it is the third in a row that failed.
        """
        self.finish()
        self.steps.add(state.step)
        partial = self._partial(state)
        parts = engine.files(partial, self._may_copy)
        if fault := self._prepare(partial, sum(part.size_bytes for part in parts)):
            self._end(state, fault)
            return
        self._state, self._has_heard = state, False
        self._part = _Task(lambda: write_parts(partial, parts, self.world.rank), all(part.is_copy for part in parts))
        if not self.settings.background:
            self.finish()

    def follow(self) -> None:
        """Continue the save that is under way, given what the ranks said with the last step. Every rank calls it once a step."""
        if self._state is None or self._part is None:
            return
        # What was said with the step before the save began is of another save.
        heard = self.notices.heard.read() if self._has_heard else {"saved": 0, "not_saved": 0}
        self._has_heard = True
        said = heard["saved"] + heard["not_saved"]
        if said == self.world.size:
            self._end(self._state, self._agreed_fault() if heard["not_saved"] else None)
            return
        fault = self._part.outcome()
        if self.world.is_first and fault is not None:  # it speaks last, for the whole
            if said < self.world.size - 1:
                return
            bad = bool(fault) or heard["not_saved"] > 0
            fault = self._published(bad).outcome() if not bad else "a part is missing"
        if fault is not None:
            self.notices.mine["not_saved" if fault else "saved"] = 1

    def finish(self, must_succeed: bool = False) -> None:
        """Wait until nothing is under way; every rank calls it.

        Raises:
            SaveFailed: it is the third in a row that failed; with `must_succeed`, the last save failed.
        """
        if self._state is not None and self._part is not None:
            self._part.wait()
            faults = [fault for fault in gather_objects(self._part.outcome(), self.world) if fault]
            if self.world.is_first:
                self._published(bad=bool(faults)).wait()
            self._end(self._state, self._agreed_fault())
        if must_succeed and self.failures:
            raise self._failed()

    def _prepare(self, partial: Path, size_bytes: int) -> str | None:
        """Make room for all ranks' parts. Returns why that failed, the same on every rank."""
        fault, free = "", 0
        if self.world.is_first:
            try:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                free = free_disk_bytes(partial)
            except OSError as error:
                fault = str(error)
        reports = gather_objects([fault, free, size_bytes], self.world)
        fault, free, _ = reports[0]
        needed = int(sum(size for _, _, size in reports) * ROOM_FACTOR) + SPARE_DISK_BYTES
        if not fault and free < needed:
            fault = f"it needs {needed / 1e9:,.2f} GB, and {partial.parent} has {free / 1e9:,.2f} GB free"
        return fault or None

    def _may_copy(self, size_bytes: int) -> bool:
        """Whether the ranks of this machine may all copy so much."""
        if not self.settings.background:
            return False
        needed = size_bytes * self.world.local_size
        available = free_memory_bytes() * (1 - SPARE_MEMORY_SHARE)
        if needed > available and not self._has_warned:
            self._has_warned = True
            warn(
                f"rank {self.world.rank}: no room in memory for a copy of the state ({needed / 1e9:,.1f} GB for the ranks of "
                f"this machine, {available / 1e9:,.1f} GB free): training waits while checkpoints are written"
            )
        return needed <= available

    def _published(self, bad: bool) -> _Task:
        """The first rank's last part of the work; begins it if it has not begun."""
        if self._publishing is None:
            assert self._state is not None
            state, partial = self._state, self._partial(self._state)

            def work() -> None:
                if not bad:
                    publish(partial, folder_of(self.run, state.step), state, self.settings)

            self._publishing = _Task(work, in_background=True)
        return self._publishing

    def _agreed_fault(self) -> str | None:
        """Why the save under way failed, the same on every rank; None if it did not."""
        mine = "".join(task.outcome() or "" for task in (self._part, self._publishing) if task)
        faults = gather_objects(mine, self.world)
        return "; ".join(f"rank {rank}: {fault}" for rank, fault in enumerate(faults) if fault) or None

    def _end(self, state: State, fault: str | None) -> None:
        """Count a save that is over."""
        self._state, self._part, self._publishing = None, None, None
        self.notices.mine |= {"saved": 0, "not_saved": 0}
        folder = folder_of(self.run, state.step)
        if fault is None:
            self.failures, self.last_good = [], folder.name
            if self.world.is_first:
                say(f"step {state.step:,} | checkpoint {folder}")
            return
        self.failures.append(fault)
        self.steps.discard(state.step)
        if self.world.is_first:
            shutil.rmtree(self._partial(state), ignore_errors=True)
            warn(
                f"the checkpoint of step {state.step:,} could not be written, and nothing of it is left: {fault}. "
                f"{self._advice()}"
            )
        if len(self.failures) >= MOST_FAILURES:
            raise self._failed()

    def _failed(self) -> SaveFailed:
        count = f"{len(self.failures)} checkpoints in a row" if len(self.failures) > 1 else "the last checkpoint"
        return SaveFailed(
            f"{count} could not be written: {self.failures[-1]}. {self._advice()}, and start the same command again"
        )

    def _advice(self) -> str:
        kept = f"the last good one is {self.last_good}" if self.last_good else "it has no checkpoint yet"
        # Not by the error's number: what torch makes of a full disk has none.
        if any(words in self.failures[-1] for words in ("Permission denied", "Read-only file system")):
            remedy = f"See to it that {self.run} and all in it can be written"
        else:
            remedy = f"Free space on the file system of {self.run}, or lower checkpoint.keep_last"
        return f"{kept[0].upper()}{kept[1:]}. {remedy}"

    def _partial(self, state: State) -> Path:
        folder = folder_of(self.run, state.step)
        return folder.with_name(f".partial-{folder.name}")


class _Task:
    """Work in a thread, or done at once. Its outcome is why it failed, empty if it succeeded."""

    def __init__(self, work: Callable[[], object], in_background: bool) -> None:
        self._work = work
        self._outcome: str | None = None
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True) if in_background else None
        if self._thread:
            self._thread.start()
        else:
            self._run()

    def _run(self) -> None:
        try:
            self._work()
            outcome = ""
        except Exception as error:  # a full disk is an OSError, or what torch makes of it
            outcome = str(error) or repr(error)
        self._work = lambda: None  # gives the copy back
        self._outcome = outcome

    def outcome(self) -> str | None:
        """None while it is under way."""
        return self._outcome

    def wait(self) -> None:
        if self._thread:
            self._thread.join()
