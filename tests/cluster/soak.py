"""One small run of two ranks, struck by many faults at random moments: its losses and weights must be the undisturbed run's.

    python -m tests.cluster.soak --faults 200 --seed 1 --write docs/soak.md

Faults are drawn beforehand from the seed: what, after which step, which rank, and numbers that a fault may need. After each the
ranks must end by themselves where they can, as a launcher would expect; then the run is started again. Ranks fork from a
server that has imported everything, so that a start takes a second or two. Faults of the launcher start `maskloom train`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import yaml

from maskloom.data.writing.passes import Options
from maskloom.errors import UserError
from maskloom.status import EXIT_HUNG, EXIT_STOPPED
from maskloom.train.checkpoint import saved_at
from tests.integration.conftest import final_weights, losses, start_ranks, train_in_ranks

RANKS = 2
AFTER_STEPS = range(1, 11)
STEPS_A_FAULT = 12
"""Of the run, so that it is not at its end before its last fault: some faults let it go on for a while."""
PATIENCE_S = 180.0
HUNG_S = 4.0
"""`timeouts.train_s` of attempts in which a rank is stopped."""


@dataclass(frozen=True)
class Fault:
    """What strikes, and when.

    Attributes:
        after_steps: it strikes once the attempt has logged so many steps.
        rank: whom it strikes, where it strikes one.
        delay_s: how long after that step, so that it falls anywhere in a step.
        draw: a number in [0, 1) for whatever else is to be chosen.
    """

    kind: str
    after_steps: int
    rank: int
    delay_s: float
    draw: float


@dataclass
class Attempt:
    """A start of the run's ranks, and what became of it."""

    run: Path
    ranks: list[BaseProcess] = field(default_factory=list)

    def codes(self) -> list[int | None]:
        return [rank.exitcode for rank in self.ranks]

    def signal(self, number: int, sent: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.ranks[number].pid or 0, sent)

    def until_ended(self) -> None:
        """Wait for ranks to end by themselves. Raises TimeoutError where they do not."""
        deadline_s = time.monotonic() + PATIENCE_S
        for rank in self.ranks:
            rank.join(max(deadline_s - time.monotonic(), 0.01))
        if None in self.codes():
            raise TimeoutError(f"ranks run on after {PATIENCE_S:.0f} s, exit codes {self.codes()}")

    def kill(self) -> None:
        for rank in self.ranks:
            rank.kill()
            rank.join()


Strike = Callable[[Attempt, Fault], None]
"""Strikes an attempt that has done the fault's steps, and waits until its ranks have ended."""


def kill_rank(attempt: Attempt, fault: Fault) -> None:
    attempt.signal(fault.rank, signal.SIGKILL)
    attempt.until_ended()


def kill_all(attempt: Attempt, fault: Fault) -> None:
    for rank in range(RANKS):
        attempt.signal(rank, signal.SIGKILL)
    attempt.until_ended()


def ask_rank(sent: signal.Signals) -> Strike:
    def strike(attempt: Attempt, fault: Fault) -> None:
        attempt.signal(fault.rank, sent)
        attempt.until_ended()
        assert attempt.codes() == [EXIT_STOPPED] * RANKS, attempt.codes()

    return strike


def ask_all(attempt: Attempt, fault: Fault) -> None:
    for rank in range(RANKS):
        attempt.signal(rank, signal.SIGTERM)
    attempt.until_ended()
    assert attempt.codes() == [EXIT_STOPPED] * RANKS, attempt.codes()


def ask_by_file(attempt: Attempt, fault: Fault) -> None:
    (attempt.run / "stop").write_text("asked by the soak")
    attempt.until_ended()
    assert attempt.codes() == [EXIT_STOPPED] * RANKS, attempt.codes()


def stop_rank(attempt: Attempt, fault: Fault) -> None:
    """A rank that hangs: the others must end by their own watchdogs; the launcher kills what hangs."""
    attempt.signal(fault.rank, signal.SIGSTOP)
    others = [rank for number, rank in enumerate(attempt.ranks) if number != fault.rank]
    for rank in others:
        rank.join(PATIENCE_S)
    assert [rank.exitcode for rank in others] == [EXIT_HUNG] * len(others), attempt.codes()
    attempt.signal(fault.rank, signal.SIGKILL)
    attempt.until_ended()


def kill_in_save(attempt: Attempt, fault: Fault) -> None:
    """A rank killed while a checkpoint is written."""
    folder = attempt.run / "checkpoints"
    before = entries(folder)
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s and not any(attempt.codes()):
        if entries(folder) - before:
            break
    time.sleep(fault.draw * 0.05)
    kill_rank(attempt, fault)


def entries(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()} if folder.exists() else set()


def disk_full(attempt: Attempt, fault: Fault) -> None:
    """A rank that can write no file of more than a few kB, until its next save has failed; then it is killed."""
    pid = attempt.ranks[fault.rank].pid
    assert pid
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (int(4096 * (1 + fault.draw)), resource.RLIM_INFINITY))
    deadline_s = time.monotonic() + PATIENCE_S
    step = max(losses(attempt.run), default=0)
    while time.monotonic() < deadline_s and not any(attempt.codes()):
        if max(losses(attempt.run), default=0) >= step + 12:
            break
        time.sleep(0.05)
    kill_all(attempt, fault)


def damage(how: str) -> Strike:
    """The newest checkpoint damaged while nobody runs."""

    def strike(attempt: Attempt, fault: Fault) -> None:
        kill_all(attempt, fault)
        saved = sorted((attempt.run / "checkpoints").glob("step-*"))
        if len(saved) < 2:  # the run could not go on from nothing
            return
        files = sorted(file for file in saved[-1].iterdir() if file.is_file())
        file = files[int(fault.draw * len(files))]
        size = file.stat().st_size
        if how == "missing":
            file.unlink()
        elif how == "truncated":
            os.truncate(file, int(size * fault.draw))
        else:
            with file.open("r+b") as opened:
                place = int(size * fault.draw)
                opened.seek(place)
                byte = opened.read(1)[0]
                opened.seek(place)
                opened.write(bytes([byte ^ 1 << fault.rank]))

    return strike


def second_start(attempt: Attempt, fault: Fault) -> None:
    """A second attempt in the same folder: refused, and the first goes on, until it is killed."""
    second = Attempt(attempt.run, start_ranks([config_of(attempt.run)], RANKS, log_of(attempt.run)))
    try:
        second.ranks[0].join(PATIENCE_S)
        assert second.codes()[0] == 1, second.codes()
    finally:
        second.kill()
    step = max(losses(attempt.run), default=0)
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s and max(losses(attempt.run), default=0) == step and None in attempt.codes():
        time.sleep(0.02)
    if None in attempt.codes():
        kill_all(attempt, fault)


KINDS: dict[str, tuple[Strike, int, str]] = {
    "rank killed": (kill_rank, 4, "SIGKILL to one rank"),
    "all ranks killed": (kill_all, 2, "SIGKILL to every rank"),
    "killed while saving": (kill_in_save, 4, "SIGKILL to one rank up to 50 ms after a checkpoint's folder appears"),
    "SIGTERM to a rank": (ask_rank(signal.SIGTERM), 2, "the others hear of it with the next step"),
    "SIGUSR2 to a rank": (ask_rank(signal.SIGUSR2), 2, "as Slurm's --signal=USR2@180 sends it"),
    "SIGTERM to all ranks": (ask_all, 2, "as scancel sends it"),
    "stop file": (ask_by_file, 1, "RUN/stop"),
    "rank hung": (stop_rank, 2, "SIGSTOP to one rank; timeouts.train_s = 4, and amid a save start_s = 60"),
    "disk full": (disk_full, 2, "RLIMIT_FSIZE of one rank falls to a few kB; after 12 steps it is killed"),
    "newest checkpoint truncated": (damage("truncated"), 1, "one of its files, anywhere"),
    "newest checkpoint with a flipped bit": (damage("flipped"), 2, "in one of its files, anywhere"),
    "newest checkpoint without a file": (damage("missing"), 1, "any of its files"),
    "second start in the same folder": (second_start, 1, "refused; the first continues, and is then killed"),
}
"""Name -> what it does, how often beside the others, in words."""


def draw(seed: int, number: int, kinds: list[str]) -> list[Fault]:
    """The faults of a soak, in the order in which they strike."""
    rng = random.Random(seed)
    weights = [KINDS[kind][1] for kind in kinds]
    return [
        Fault(
            rng.choices(kinds, weights)[0],
            rng.choice(AFTER_STEPS),
            rng.randrange(RANKS),
            rng.random() * 0.05,
            rng.random(),
        )
        for _ in range(number)
    ]


def config_of(run: Path) -> Path:
    return run.with_suffix(".yaml")


def log_of(run: Path) -> Path:
    return run.with_suffix(".log")


def soak(tree: dict[str, Any], folder: Path, faults: list[Fault]) -> list[dict[str, Any]]:
    """Train `tree` undisturbed and once more under the faults; returns a row for each fault.

    Raises:
        AssertionError: a loss or a weight differs, or a fault came to something else than it should.
    """
    undisturbed, run = folder / "undisturbed", folder / "struck"
    for each in (undisturbed, run):
        config_of(each).write_text(yaml.safe_dump({**tree, "run_dir": str(each)}), encoding="utf-8")
    train_in_ranks([config_of(undisturbed)], RANKS, log_of(undisturbed), timeout_s=3600)
    expected = losses(undisturbed)
    rows = []
    for number, fault in enumerate(faults):
        rows.append(strike(run, fault, expected))
        print(f"{number + 1}/{len(faults)} {json.dumps(rows[-1])}", flush=True)
    train_in_ranks([config_of(run)], RANKS, log_of(run), timeout_s=3600)
    assert losses(run) == expected, "losses differ from the undisturbed run's"
    right, found = final_weights(undisturbed), final_weights(run)
    assert right.keys() == found.keys()
    for name, tensor in right.items():
        assert torch.equal(tensor, found[name]), f"{name} differs from the undisturbed run's"
    return rows


def strike(run: Path, fault: Fault, expected: dict[int, float]) -> dict[str, Any]:
    """Start the run, strike once it has done the fault's steps, and see how it ends."""
    started_s, step = time.monotonic(), whole_step(run) + fault.after_steps
    attempt = Attempt(run, start_ranks([config_of(run)], RANKS, log_of(run)))
    try:
        wait_for_step(attempt, step)
        ready_s = time.monotonic()
        time.sleep(fault.delay_s)
        KINDS[fault.kind][0](attempt, fault)
        ended_s = time.monotonic()
    except (AssertionError, TimeoutError) as error:
        raise AssertionError(f"{fault}: {error}\n{log_of(run).read_text()[-6000:]}") from None
    finally:
        attempt.kill()
    logged = losses(run)
    for step, loss in logged.items():
        assert loss == expected[step], f"{fault}: step {step} has loss {loss}, undisturbed {expected[step]}"
    status = json.loads((run / "status.json").read_text())
    return {
        **asdict(fault),
        "step": step,
        "codes": attempt.codes(),
        "state": status["state"],
        "lost_steps": max(logged, default=0) - whole_step(run),
        "start_s": round(ready_s - started_s, 2),
        "end_s": round(ended_s - ready_s, 2),
    }


def whole_step(run: Path) -> int:
    """Where the next start goes on from: the step of the newest whole checkpoint, 0 without one."""
    try:
        return int(saved_at(run).name.removeprefix("step-"))
    except UserError:
        return 0


def wait_for_step(attempt: Attempt, step: int) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    begun_s = (attempt.run / "metrics.jsonl").stat().st_mtime if (attempt.run / "metrics.jsonl").exists() else 0.0
    while True:
        # A run that goes on from before `step` has logged it in an earlier attempt: what counts is this attempt's line.
        file = attempt.run / "metrics.jsonl"
        with contextlib.suppress(FileNotFoundError, ValueError):
            if file.stat().st_mtime > begun_s and max(losses(attempt.run), default=0) >= step:
                return
        if any(code is not None for code in attempt.codes()):
            raise AssertionError(f"ended with {attempt.codes()} before step {step}")
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"no step {step} within {PATIENCE_S:.0f} s")
        time.sleep(0.01)


def tiny(folder: Path, corpus: Path, tokenizer: Path, steps: int) -> dict[str, Any]:
    """A run whose steps take some milliseconds."""
    return {
        "run_dir": str(folder),
        "seed": 5,
        "tokenizer": str(tokenizer),
        "data": {"train": str(corpus), "lanes": 4, "workers": 0},
        "model": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64},
        "optimizer": {"lr": 1e-3, "warmup_steps": 2},
        "phases": [{"steps": steps, "seq_len": 32, "global_batch_rows": 8, "micro_batch_rows": 4}],
        "checkpoint": {"every_steps": 5},
        "logging": {"every_steps": 1, "peak_tflops": 1.0},
        "timeouts": {"start_s": 60, "train_s": HUNG_S},
    }


def report(rows: list[dict[str, Any]], seed: int, steps: int, took_s: float) -> str:
    """The soak as a page."""
    lines = []
    for kind in sorted({row["kind"] for row in rows}):
        same = [row for row in rows if row["kind"] == kind]
        ends_s = sorted(row["end_s"] for row in same)
        lost = [row["lost_steps"] for row in same]
        lines.append(
            f"| {kind} | {KINDS[kind][2]} | {len(same)} | {statistics.median(ends_s):.1f} | {ends_s[-1]:.1f} "
            f"| {statistics.mean(lost):.1f} | {max(lost)} | 0 |"
        )
    starts_s = statistics.median(row["start_s"] for row in rows)
    return PAGE.format(
        faults=len(rows),
        seed=seed,
        steps=steps,
        took=f"{took_s / 60:.0f}",
        start=f"{starts_s:.1f}",
        rows="\n".join(lines),
    )


PAGE = """# {faults} faults in one run

Made by `python -m tests.cluster.soak --faults {faults} --seed {seed} --write docs/soak.md`: one run of {steps} steps with two
ranks on the CPU, a checkpoint every 5 steps, struck {faults} times at random moments and started again each time, in {took}
minutes in all. Every loss that any attempt logged, and the final weights, are those of the undisturbed run, bit for bit.

| fault | how | times | s until its ranks had ended, median | most | lost steps, mean | most | lost samples |
|---|---|---|---|---|---|---|---|
{rows}

Lost steps are those that were logged and had to be done again. With a checkpoint every 5 steps these are up to 4. If the newest
checkpoint was damaged or could not be written, they are those since the one before. A start took {start} s (median) until it had
caught up; its ranks fork from a process that has imported everything.
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster.soak", description="Many random faults in one small run."
    )
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--folder", type=Path, help="where to work, emptied first (default: a new one, removed at the end)"
    )
    parser.add_argument("--kinds", help="names of kinds, separated by commas (default: all)")
    parser.add_argument("--write", type=Path, help="page to write; its figures go beside it as JSON")
    options = parser.parse_args()
    from tests.conftest import same_tokenizer, sentences, write_shards

    folder = options.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rng = random.Random(7)
    documents = [sentences(rng, rng.choice([5, 20, 60, 150, 400])) for _ in range(400)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    write_shards([str(folder / "text.jsonl")], folder / "shards", Options(block_bytes=8 * 1024, shard_bytes=100 * 1024))
    (folder / "tokenizer").mkdir()
    same_tokenizer(documents, 400).save(folder / "tokenizer" / "tokenizer.json")
    steps = STEPS_A_FAULT * options.faults
    tree = tiny(folder / "run", folder / "shards", folder / "tokenizer", steps)
    began_s = time.monotonic()
    kinds = options.kinds.split(",") if options.kinds else list(KINDS)
    rows = soak(tree, folder, draw(options.seed, options.faults, kinds))
    page = report(rows, options.seed, steps, time.monotonic() - began_s)
    print(page)
    if options.write:
        options.write.write_text(page, encoding="utf-8")
        options.write.with_suffix(".json").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if not options.folder:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
