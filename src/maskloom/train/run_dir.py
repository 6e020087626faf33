"""The run's folder: one writer, the resolved configuration, the environment, the status.

RUN/  config.yaml  environment.json  status.json  attempts.jsonl  metrics.jsonl  tensorboard/  checkpoints/  logs/
          model/{config.json, tokenizer.json, frozen.safetensors (of `model.freeze`)}: the run needs nothing else from where
          it was started
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import socket
import threading
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from maskloom.config import RunConfig
from maskloom.config_file import dump_config, without_queries
from maskloom.distributed import World, gather_objects
from maskloom.errors import UserError
from maskloom.files import LOCK, parse_json, read_plain, whole_folder, write_atomically
from maskloom.models.build import save_definition
from maskloom.models.freezing import write_frozen
from maskloom.models.masked_lm import MaskedLM
from maskloom.progress import say, warn
from maskloom.redaction import brief, sayable
from maskloom.status import CHECKPOINT, START, State, Status, note_attempt, parse_status, read_status
from maskloom.tokenizers.base import Tokenizer
from maskloom.train.run_lock import InUse, RunLock

FAILED = ".failed-"
"""Name, before the number of the attempt, of the file that the first failing rank makes: it alone writes the status."""
MOST_THREADS = 1 << 16
THREADS = re.compile(r"[1-9][0-9]{0,4}")
PACKAGES = ("maskloom", "deepspeed", "torch", "transformers", "tokenizers", "webdataset", "numpy")


class RunDir:
    """The open folder of a run. Only the first rank writes, but for the reason of a failure, which is the first failing rank's.

    Opening it takes the lock and writes nothing else: what `begin` writes makes it a run. `meet` comes before anything that
    needs to know of the other ranks.

    Attributes:
        attempt: starts of this run so far, this one included; known to all ranks after `meet`.
        places: host and process id of every rank.
    """

    def __init__(self, config: RunConfig, world: World) -> None:
        self.folder = Path(config.run_dir)
        self.world = world
        self.is_writer = world.is_first
        self.step, self.total_steps = 0, config.total_steps
        self.attempt = 0
        self.places: list[tuple[str, int]] = [(socket.gethostname(), os.getpid())]
        self.key = ""
        self.start = os.environ.get(START, "")
        self._last_good: str | None = None  # when this attempt began
        self._begun = False
        self._trains, self._is_running, self._is_noted, self._is_unwritten = False, False, False, False
        self._writing = threading.Lock()  # of status.json: the main thread and the watch thread do
        self._lock: RunLock | None = None
        self._refusal: str | None = None
        self._is_in_use = False
        with contextlib.suppress(OSError):  # it may not be looked at: the first rank says so
            self._begun = (self.folder / "config.yaml").exists()
        if not self.is_writer:
            return
        try:
            refuse_foreign(self.folder)
            self._lock = RunLock(self.folder, self.start)
            before = read_status(self.folder)
            self.attempt = 1 + (before.attempt if before else 0)
            self.step = before.step if before else 0
            if before and before.state == "done" and (self.folder / "stop").is_file():
                say(f"removed {self.folder / 'stop'}: it was made when the run was done, and asked nobody")
                self._remove_request()
            self._last_good = before.last_good_checkpoint if before else None
            for left in self.folder.glob(f"{FAILED}*"):
                left.unlink()
        except (UserError, OSError) as error:
            self._refusal, self._is_in_use = str(error), isinstance(error, InUse)

    def meet(self) -> None:
        """Tell the ranks of each other.

        Raises:
            InUse: on all ranks, if another process trains in the folder.
            UserError: on all ranks, if the first could not open the folder.
        """
        key = f"{os.getpid()}-{time.time_ns()}"
        mine = [socket.gethostname(), os.getpid(), self._refusal, self._is_in_use, self.attempt, self.step, key]
        said = gather_objects(mine, self.world)
        self.places = [(host, pid) for host, pid, *_ in said]
        _, _, refusal, is_in_use, self.attempt, self.step, self.key = said[0]
        if refusal is not None:
            self._refusal = refusal
            raise InUse(refusal) if is_in_use else UserError(refusal)

    @property
    def hosts(self) -> tuple[str, ...]:
        """In the order of their first ranks."""
        return tuple(dict.fromkeys(host for host, _ in self.places))

    def rank_name(self, rank: int) -> str:
        host, pid = self.places[rank] if rank < len(self.places) else ("?", 0)
        return f"rank {rank} on {host} (process {pid})"

    def threads(self, world: World, cores: int) -> int:
        """CPU threads a rank: what the run recorded when it began (other counts give other bits), else the share of
        the machine's cores; OMP_NUM_THREADS, if it is set, decides at the beginning."""
        if (recorded := recorded_threads(self.folder)) is not None:
            return recorded
        given = os.environ.get("OMP_NUM_THREADS", "")
        return int(given) if THREADS.fullmatch(given) else max(1, cores // world.local_size)

    def begin(
        self,
        config: RunConfig,
        model: MaskedLM,
        tokenizer: Tokenizer,
        world: World,
        step: int,
        frozen: Mapping[str, torch.Tensor] = MappingProxyType({}),
    ) -> None:
        """Everything is ready to train from `step`: write what describes the run. What it began with is written once.

        Args:
            frozen: the weights that it does not train, if it begins.
        """
        self.step, self._begun, self._trains = step, True, True
        if not self.is_writer:
            return
        saved = config.model_copy(update={"data": without_queries(config.data)})
        write_atomically(self.folder / "config.yaml", dump_config(saved))  # from here on it is a run
        if not (self.folder / "model").exists():
            with whole_folder(self.folder / "model") as partial:
                save_definition(model, tokenizer, partial)
        if frozen:
            write_frozen(self.folder / "model", frozen)
        if not (self.folder / "environment.json").exists():
            content: dict[str, Any] = {
                "host": socket.gethostname(),
                "python": platform.python_version(),
                "packages": {name: version(name) for name in PACKAGES},
                "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
                "world_size": world.size,
                "threads": torch.get_num_threads(),
            }
            write_atomically(self.folder / "environment.json", json.dumps(content, indent=1))
        self._note(step)
        self.record("running", step)

    def record(self, state: State, step: int, reason: str = "", advice: str = "") -> None:
        """Write `status.json`: `running`, `stopped` or `done`, at which step.

        Raises:
            OSError: it cannot be written, and the run is at its end. A running one continues, with a warning.
        """
        self.step = step
        if not self.is_writer:
            return
        with self._writing:
            self._is_running = state == "running"
            try:
                self._status(state, sayable(reason), advice).write(self.folder)
            except OSError as error:
                if not self._is_running:
                    raise
                if not self._is_unwritten:
                    warn(f"cannot write the run's status ({error}): it stays what it was until that is possible again")
                self._is_unwritten = True
            else:
                self._is_unwritten = False
        if state == "done":
            self._remove_request()

    def stop(self, why: str, step: int) -> None:
        """Record that the run stopped as it was asked to; the request is carried out."""
        self.step = step
        if not self.is_writer or not self._begun:
            return
        self._note(step)
        origin = self.last_good_checkpoint() or "the beginning"
        self.record("stopped", step, why, f"The same command resumes from {origin}.")
        self._remove_request()

    def refresh(self, step: int) -> None:
        """Show that the run is at work, if it is."""
        with self._writing:
            if not self._is_running or self.failure() is not None:
                return
            self.step = step
            self._status("running").write(self.folder)
            if (failure := self.failure()) is not None:  # while we wrote
                failure.write(self.folder)

    def touch(self) -> None:
        if self._lock is not None:
            self._lock.touch()

    def fail(self, reason: str, advice: str, can_retry: bool) -> bool | None:
        """Record why the attempt ended, unless another rank failed before. A folder that never became a run is removed.

        Returns:
            whether no other rank failed before; None if that cannot be known.
        """
        if self._refusal is not None:
            return self.is_writer
        if not self._begun:
            self._remove()
            return None
        if not self.attempt:  # this rank has not met the first one, which may hold the folder or not
            return None
        if self._trains or can_retry:
            self._note(self.step)
        status = self._status("failed", sayable(reason), sayable(advice), can_retry)
        try:
            with self._failed.open("x", encoding="utf-8") as file:
                file.write(status.as_text())
        except FileExistsError:
            return False
        except OSError:  # a full disk: the error that ended the run matters more
            pass
        if not self._trains and not can_retry:
            return True  # a start that was refused says nothing of the run, which stands as it stood
        with self._writing, contextlib.suppress(OSError):
            self._is_running = False
            if self._newest_attempt() <= self.attempt:  # a rank of a lost host may come late
                status.write(self.folder)
        return True

    def failure(self) -> Status | None:
        """How this attempt failed, on whichever rank was first; None if none has."""
        try:
            return parse_status(read_plain(self._failed).decode("utf-8"))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _newest_attempt(self) -> int:
        """The attempt in status.json; 0 if it cannot be read."""
        try:
            status = read_status(self.folder)
        except UserError:
            return 0
        return status.attempt if status else 0

    def last_good_checkpoint(self) -> str | None:
        """The name that `checkpoints/latest.json` points at."""
        return newest_named(self.folder)

    def close(self) -> None:
        """Release the folder; remove it if it never became a run."""
        if not self._begun and self._refusal is None:
            self._remove()
        if self._lock is not None:
            self._lock.release()

    @property
    def _failed(self) -> Path:
        return self.folder / f"{FAILED}{self.attempt}"

    def _status(self, state: State, reason: str = "", advice: str = "", can_retry: bool = True) -> Status:
        return Status(
            state,
            self.step,
            self.total_steps,
            self.attempt,
            reason,
            advice,
            can_retry,
            # A start that fails while the checkpoints are out of sight does not say that there are none.
            self.last_good_checkpoint() or (None if self._trains else self._last_good),
            self.hosts,
            self.world.size,
            start=self.start,
        )

    def _note(self, step: int) -> None:
        if self.is_writer and not self._is_noted:
            self._is_noted = True
            line = {"attempt": self.attempt, "step": step, "world_size": self.world.size, "hosts": list(self.hosts)}
            line["start"] = self.start
            with contextlib.suppress(OSError, UserError):
                note_attempt(self.folder, line)

    def _remove_request(self) -> None:
        """The request to stop was carried out, or came too late. A folder of that name is not a request."""
        stop = self.folder / "stop"
        try:
            if not stop.is_dir():
                stop.unlink(missing_ok=True)
        except OSError as error:  # somebody else's, in a folder in which each may remove their own files only
            warn(f"{stop} cannot be removed ({error.strerror}): remove it, or the next start stops at once")

    def _remove(self) -> None:
        if self.is_writer and self._lock is not None:
            with contextlib.suppress(OSError):
                if [entry.name for entry in self.folder.iterdir()] == [LOCK]:
                    (self.folder / LOCK).unlink()
                    self.folder.rmdir()


def recorded_threads(folder: Path) -> int | None:
    """The number of threads that a run began with, or None if it says nothing. Raises UserError if its file is damaged."""
    environment = folder / "environment.json"
    if not environment.exists():
        return None
    content = read_plain(environment)
    try:
        threads = parse_json(content)["threads"]
        if type(threads) is not int or not 1 <= threads <= MOST_THREADS:
            raise ValueError(f"threads is {threads!r}")
        return threads
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{environment} is damaged ({brief(error)}): remove it to resume with this machine's number of threads"
        ) from None


def newest_named(run: Path) -> str | None:
    """The name that `checkpoints/latest.json` points at; None if it names no checkpoint."""
    try:
        name = parse_json(read_plain(run / "checkpoints" / "latest.json"))["name"]
        return name if CHECKPOINT.fullmatch(name) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def refuse_foreign(folder: Path) -> None:
    """Raises UserError if this is not a folder, or holds something that is not a run."""
    if folder.is_symlink() and not folder.exists():
        raise UserError(
            f"run_dir {folder} is a link to {folder.readlink()}, which is not there: see that it is mounted, or choose another "
            "folder"
        )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"run_dir {folder} is a file: choose another folder")
    if (folder / "config.yaml").exists() or not folder.is_dir():
        return
    if not all(entry.name.startswith(".") for entry in folder.iterdir()):
        raise UserError(f"run_dir {folder} is not empty and holds no run (no config.yaml): choose another folder")
