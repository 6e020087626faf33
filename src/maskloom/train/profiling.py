"""Where the time of a run's steps goes: `maskloom train CONFIG --profile N`.

    the run's newest checkpoint, if it has one -> a fork of it, in a folder that is never made -> warm-up -> N steps
        -> a table of the time by part, and of what ran by kind; a trace a rank, for https://ui.perfetto.dev

The run itself is only read: a fork never writes to what it begins from. Its lock is not taken, and nothing is logged or saved.

Every moment of a step belongs to one part. `StepClock` notes when a part begins and ends; what runs within another part, such as
the all-reduces of a backward, is not counted to the outer one. On a GPU the moments are events on the stream that the model runs
on, so that the time is that of kernels, not of their launches. Collectives that DeepSpeed runs on a stream of its own
(`engine.overlap`) pass beside the backward, and count to nothing but the wait for them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from maskloom.config import RunConfig
from maskloom.data.batch import MicroBatch
from maskloom.distributed import World, barrier, gather_objects
from maskloom.errors import UserError
from maskloom.files import write_atomically
from maskloom.hardware import cores
from maskloom.progress import say, show
from maskloom.train.checkpoint.state import saved_folders
from maskloom.train.engine.device import device_of
from maskloom.train.engine.engine import Backward, Engine, StepOutcome, start_distributed
from maskloom.train.kinds import DATA, OPTIMIZER, TITLES, sum_up, what_ran
from maskloom.train.rank.heartbeats import Pulse
from maskloom.train.resume import reconcile
from maskloom.train.run_dir import recorded_threads
from maskloom.train.setup import prepare, set_up
from maskloom.train.step import train_step
from maskloom.train.trainer import Trainer

WARM_STEPS = 4  # the first compiles, and memory is at its height after the second
SCOPE = "maskloom: "
PARTS = ("data wait", "forward", "backward", "optimizer step", "communication", "other")
SUMMARY = "profile.json"
TRACE = re.compile(r"trace-rank-\d+\.json")
FORMAT = "maskloom profile 1"


class StepClock:
    """Marks between the parts of steps, on one rank. It counts between `begin` and `end` only."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        self._parts = ["other"]
        self._marks: list[tuple[str, Any]] = []  # the part that begins there, and the moment
        self._runs = False

    def begin(self) -> None:
        """Forget what was counted, and count from here on."""
        self._marks, self._runs = [], True
        self._mark()

    def end(self) -> None:
        self._mark()
        self._runs = False

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Within it, time belongs to this part; in a trace it is a slice of that name."""
        self._parts.append(name)
        self._mark()
        with torch.profiler.record_function(SCOPE + name):
            yield
        self._parts.pop()
        self._mark()

    def seconds(self) -> dict[str, float]:
        """Of each part; their sum is the time from `begin` to `end`. Waits for the device."""
        if self._stream is not None:
            self._stream.synchronize()
        found = dict.fromkeys(PARTS, 0.0)
        for (part, began), (_, ended) in itertools.pairwise(self._marks):
            found[part] += ended - began if self._stream is None else began.elapsed_time(ended) / 1e3
        return found

    def _mark(self) -> None:
        if not self._runs:
            return
        if self._stream is None:
            self._marks.append((self._parts[-1], time.perf_counter()))
        elif torch.cuda.current_stream(self._stream.device) == self._stream:  # not amid what runs beside it
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record(self._stream)
            self._marks.append((self._parts[-1], event))


class MarkedEngine(Engine):
    """An engine that says to a clock what it is at."""

    def __init__(self, engine: Engine, clock: StepClock) -> None:
        vars(self).update(vars(engine))
        self._clock = clock

    def __call__(self, micro_batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        with self._clock.part("forward"):
            return super().__call__(micro_batch)

    @contextlib.contextmanager
    def accumulating(self, micro_batches: int) -> Iterator[Backward]:
        with contextlib.ExitStack() as stack:
            backward = stack.enter_context(super().accumulating(micro_batches))

            def marked(loss: torch.Tensor) -> None:
                with self._clock.part("backward"):
                    backward(loss)

            yield marked
            with self._clock.part("backward"):  # the ranks' gradients are averaged
                stack.close()

    def step(self, lr: float, is_spoilt: bool = False, clipping: float | None = None) -> StepOutcome:
        with self._clock.part("optimizer step"):
            return super().step(lr, is_spoilt, clipping)


assert (SCOPE + PARTS[0], SCOPE + PARTS[3]) == (DATA, OPTIMIZER)


def profile(config: RunConfig, world: World, steps: int, out: Path) -> None:
    """Profile so many steps of a run on every rank; the first one prints the tables.

    Args:
        out: folder of the traces; see `refuse_foreign_out`.

    Raises:
        UserError: as for a training; or `out` holds something else.
    """
    run = Path(config.run_dir)
    threads = recorded_threads(run) or max(1, cores() // world.local_size)
    traffic = start_distributed(world, config.timeouts.start_s, config.engine.deterministic)
    # A name alone, of no folder: nothing is written there, so nothing is left of a profile that is stopped or killed.
    nowhere = Path(tempfile.gettempdir(), f"maskloom-profile-{uuid.uuid4().hex}", "run")
    config, plan = prepare(thrown_away(config, steps, nowhere), world)
    torch.set_num_threads(threads)
    clock = StepClock(device_of(world))
    traffic.around = lambda: clock.part("communication")
    trainer, _ = set_up(config, plan, world, traffic, Pulse())
    plain_s, measured = measure(trainer, clock, steps)
    seconds = {part: value / steps for part, value in clock.seconds().items()}
    of_ranks = gather_objects(seconds, world)
    make_room(out, world)
    trace = out / f"trace-rank-{world.rank}.json"
    measured.export_chrome_trace(str(trace))
    if not world.is_first:
        return
    step_s = sum(seconds.values())
    is_cuda = trainer.device.type == "cuda"
    ran = what_ran(measured.events(), is_cuda)  # type: ignore[no-untyped-call]
    kinds = sum_up(ran, step_s * steps, steps, trainer.engine.model.config.vocab_size)
    summary = {
        "format": FORMAT,
        "first_step": trainer.step - steps + 1,
        "steps": steps,
        "ranks": world.size,
        "step_s": step_s,
        "step_s_without_profiler": plain_s,
        "parts_s": of_ranks,
        "kinds_s": kinds["parts"],
        "longest": kinds["names"],
    }
    write_atomically(out / SUMMARY, json.dumps(summary, indent=1) + "\n")
    show(tables(summary))
    more = f" and {world.size - 1} more" if world.size > 1 else ""
    say(f"traces: {trace}{more}; open them in https://ui.perfetto.dev. The figures: {out / SUMMARY}")


def measure(trainer: Trainer, clock: StepClock, steps: int) -> tuple[float, torch.profiler.profile]:
    """Warm up, then profile steps. Every rank calls it.

    Returns:
        seconds of a warm step without the profiler, and the `torch.profiler.profile`.
    """
    engine = MarkedEngine(trainer.engine, clock)
    batches = iter(trainer.steps())

    def take() -> None:
        with torch.profiler.record_function(f"step {trainer.step + 1}"):
            with clock.part("data wait"):
                batch = next(batches)
            train_step(batch, trainer, engine)

    def wait() -> None:
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)

    warm_s = []
    for _ in range(WARM_STEPS):
        began_s = time.perf_counter()
        take()
        wait()
        warm_s.append(time.perf_counter() - began_s)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if trainer.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, record_shapes=True) as measured:
        barrier()
        clock.begin()
        for _ in range(steps):
            take()
        clock.end()
        wait()
    return statistics.median(warm_s[WARM_STEPS // 2 :]), measured


def thrown_away(config: RunConfig, steps: int, folder: Path) -> RunConfig:
    """The configuration of a run in `folder` that begins where the run stands, and has steps enough to be profiled.

    Raises:
        UserError: the run was started with another configuration.
    """
    run = Path(config.run_dir)
    config = reconcile(config)
    last = config.phases[-1]
    longer = last.model_copy(update={"steps": last.steps + WARM_STEPS + steps})
    changed: dict[str, Any] = {"run_dir": str(folder), "phases": (*config.phases[:-1], longer)}
    if saved_folders(run):
        changed["from_"] = str(run)
    return config.model_copy(update=changed)


def refuse_foreign_out(out: Path, run: Path) -> None:
    """Raises UserError if the folder for the traces is the run's, cannot be written, or has files of something else."""
    if out.resolve().is_relative_to(run.resolve()):
        raise UserError(f"--out {out} lies in the run's folder, which a profile leaves as it is: choose another one")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is not a folder: choose another one")
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    if not os.access(there, os.W_OK | os.X_OK):  # better known before the steps than after them
        raise UserError(f"--out {out}: {there} cannot be written: choose another folder")
    names = {entry.name for entry in out.iterdir()} if out.is_dir() else set()
    if not names:
        return
    try:
        is_ours = json.loads((out / SUMMARY).read_text(encoding="utf-8"))["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        is_ours = False
    others = sorted(name for name in names if name != SUMMARY and not TRACE.fullmatch(name))
    if others or not is_ours:
        shown = ", ".join(others or sorted(names))
        raise UserError(f"--out {out} holds other files ({shown[:200]}): choose an empty folder, or a new one")


def make_room(out: Path, world: World) -> None:
    """Make the folder, without the traces of an earlier profile. Every rank calls it."""
    if world.local_rank == 0:
        out.mkdir(parents=True, exist_ok=True)
        for entry in out.iterdir():
            if TRACE.fullmatch(entry.name):
                entry.unlink(missing_ok=True)
    barrier()


def tables(summary: dict[str, Any]) -> str:
    """What `profile.json` says, for people."""
    step_s, of_ranks = summary["step_s"], summary["parts_s"]
    first, last = summary["first_step"], summary["first_step"] + summary["steps"] - 1
    parts = {part: [seconds[part] for seconds in of_ranks] for part in PARTS}
    parts["a step"] = [sum(seconds.values()) for seconds in of_ranks]
    head = ["part", "ms a step", "share", *(["least to most of the ranks"] if len(of_ranks) > 1 else [])]
    rows = [[name, *_cells(values, step_s)] for name, values in parts.items()]
    kinds = [[TITLES[kind], *_cells([seconds], step_s)] for kind, seconds in summary["kinds_s"].items()]
    return "\n".join(
        [
            f"steps {first:,} to {last:,} on {summary['ranks']} rank(s); without the profiler a step took "
            f"{1e3 * summary['step_s_without_profiler']:,.1f} ms",
            "",
            *_aligned([head, *rows]),
            "",
            *_aligned([["what ran on rank 0", "ms a step", "share"], *kinds]),
        ]
    )


def _cells(values: Sequence[float], step_s: float) -> list[str]:
    mean = statistics.fmean(values)
    cells = [f"{1e3 * mean:,.1f}", f"{mean / step_s:.1%}"]
    return [*cells, f"{1e3 * min(values):,.1f} to {1e3 * max(values):,.1f}"] if len(values) > 1 else cells


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns: the first to the left, figures to the right."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [
        "  ".join([row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], others, strict=True))])
        for row in rows
    ]
