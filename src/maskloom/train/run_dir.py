"""The run's folder: one writer, the resolved configuration, the environment, the status.

RUN/  config.yaml  environment.json  status.json  metrics.jsonl  tensorboard/  checkpoints/
          model/{config.json, tokenizer.json}: beside them the run needs nothing from where it was started
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import re
import socket
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import torch

from maskloom.config import RunConfig, differences, dump_config, load_config, rechecked, saved_form
from maskloom.distributed import World
from maskloom.errors import UserError
from maskloom.files import whole_folder, write_atomically
from maskloom.model.bert import MaskedLM, save_definition
from maskloom.redaction import redacted
from maskloom.tokenizer import Tokenizer

MAY_CHANGE = re.compile(
    r"run_dir|tokenizer|data\.(train(\.\d+\.path)?|workers|prefetch_steps|on_bad_data|max_bad_share|storage\..*)|phases\.\d+\.micro_batch_rows|logging\..*|checkpoint\..*|guard\..*|timeouts\..*"
    r"|evaluation\..*|engine\.(kernels|activation_checkpointing|zero_stage|reduce|reduce_precision|overlap)|model\.init|deepspeed\..*"
)
"""What a resumed run may set otherwise: nothing of it changes which rows are seen. Moved files (tokenizer, data.train)
are recognised by their digests; `engine.zero_stage` is checked when the checkpoint is loaded."""
PACKAGES = ("maskloom", "deepspeed", "torch", "transformers", "tokenizers", "webdataset", "numpy")


def reconcile(config: RunConfig) -> RunConfig:
    """The configuration to run with, given what the run directory holds already.

    A run that exists keeps what was derived when it began (lanes); what may change is taken from `config`.

    Raises:
        UserError: the folder is something else, or the configurations differ in what may not change (all listed).
    """
    folder = Path(config.run_dir)
    saved_file = folder / "config.yaml"
    if not saved_file.exists():
        if folder.is_dir() and any(entry.name != ".lock" for entry in folder.iterdir()):
            raise UserError(f"run_dir {folder} is not empty and holds no run (no config.yaml): choose another folder")
        if folder.exists() and not folder.is_dir():
            raise UserError(f"run_dir {folder} is a file: choose another folder")
        return config
    saved = load_config(saved_file)
    if config.data.lanes is None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"lanes": saved.data.lanes})})
    if config.engine.precision == "auto":
        engine = config.engine.model_copy(update={"precision": saved.engine.precision})
        config = config.model_copy(update={"engine": engine})
    config = rechecked(config, f"the settings given, with the lanes of the run in {folder}")
    found = differences(saved.model_dump(mode="json"), config.model_dump(mode="json"))
    refused = [
        f"  {key}: {old!r} in the run, {new!r} now"
        for key, (old, new) in found.items()
        if not MAY_CHANGE.fullmatch(key) and not _is_more_steps(key, old, new, len(saved.phases))
    ]
    if refused:
        raise UserError(
            f"the run in {folder} was started with another configuration:\n" + "\n".join(refused) + "\n"
            "Set these back to go on with it, or set run_dir to a new folder for a new run"
        )
    return config


class RunDir:
    """The open folder of a run; only the first rank writes, and only one process at a time may hold it.

    Opening it takes the lock and writes nothing else: what `begin` writes makes it a run.
    """

    def __init__(self, config: RunConfig, world: World) -> None:
        self.folder = Path(config.run_dir)
        self.is_writer = world.is_first
        self.step, self.total_steps = 0, config.total_steps
        self._begun = (self.folder / "config.yaml").exists()
        self._lock: IO[str] | None = None
        if not self.is_writer:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / ".lock").open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            raise UserError(
                f"run_dir {self.folder} is in use by {self._lock.read().strip() or 'another process'}: wait for it, stop "
                "it, or choose another folder"
            ) from None
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._lock.flush()

    def threads(self, world: World, cores: int) -> int:
        """CPU threads a rank: what the run recorded when it began (other counts give other bits), else the share of
        the machine's cores; OMP_NUM_THREADS, where it is set, decides at the beginning."""
        environment = self.folder / "environment.json"
        if environment.exists():
            try:
                return int(json.loads(environment.read_text())["threads"])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{environment} is damaged ({error}): remove it to go on with this machine's number of threads"
                ) from None
        given = os.environ.get("OMP_NUM_THREADS", "")
        return int(given) if given.isdigit() and int(given) else max(1, cores // world.local_size)

    def begin(self, config: RunConfig, model: MaskedLM, tokenizer: Tokenizer, world: World, step: int) -> None:
        """Everything is ready to train from `step`: write what describes the run. What it began with is written once."""
        self.step = step
        if not self.is_writer:
            return
        write_atomically(self.folder / "config.yaml", dump_config(saved_form(config)))  # from here on it is a run
        self._begun = True
        if not (self.folder / "model").exists():
            with whole_folder(self.folder / "model") as partial:
                save_definition(model, tokenizer, partial)
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
        self.record("running", step)

    def fail(self, error: BaseException) -> None:
        """Record why the run ended; a folder that never became a run is taken away again."""
        with contextlib.suppress(OSError):  # a full disk: the error that ended the run matters more
            if self._begun:
                self.record("failed", self.step, reason=redacted(f"{type(error).__name__}: {error}"))
            elif self.is_writer and [entry.name for entry in self.folder.iterdir()] == [".lock"]:
                (self.folder / ".lock").unlink()
                self.folder.rmdir()

    def record(self, state: str, step: int, **more: Any) -> None:
        """Write `status.json`: `running`, `done` or `failed`, at which step."""
        self.step = step
        if self.is_writer:
            status = {"state": state, "step": step, "total_steps": self.total_steps, **more}
            write_atomically(self.folder / "status.json", json.dumps(status, indent=1))


def _is_more_steps(key: str, old: Any, new: Any, phases: int) -> bool:
    """A longer last phase, or further phases after it."""
    if key == f"phases.{phases - 1}.steps":
        return bool(new is not None and new >= old)
    return bool(re.fullmatch(r"phases\.\d+", key) and old is None and int(key.split(".")[1]) >= phases)
