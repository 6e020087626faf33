"""What a checkpoint costs, and how long a resume takes, beside DeepSpeed's own `save_checkpoint` and `load_checkpoint`.

    python benchmarks/checkpoint.py [--cases base,two-ranks] [--rounds 5] [--out benchmarks/results/checkpoint.json]

One engine (AdamW, ZeRO 1, fp32 on a CPU) trains, and saves by turns in both ways. `held_up_s` is what a save costs the training:
the call, and what the steps after it take longer than others, since maskloom still writes beside them. maskloom's files are
flushed to the disk, read back, digested and renamed to a whole checkpoint when `durable_s` is over; DeepSpeed's are handed to
the kernel when its call returns, and no more. `load_s` is from the decision to load to an engine that holds the state, from files
that are not in memory; maskloom's includes the verification of all digests. Seconds are the slowest rank's; medians over the
rounds, which alternate. Measure on a machine where nothing else runs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from machine import stamp
from step.cases import SYSTEMS, Case
from step.jobs import Training, run_config
from step.text import Text, prepare

from maskloom.config import RunConfig

HERE = Path(__file__).resolve().parent
STEPS = {"base": 2, "two-ranks": 12, "tiny": 4}  # after a save: about as long as it is written
CASES = {
    "base": (Case("base", "BERT-base", 768, 12, 12, 128, 16, 16, 0, 1, 1), 1),
    "two-ranks": (Case("two-ranks", "BERT-small (4 layers of 512)", 512, 4, 8, 128, 16, 8, 0, 1, 1), 2),
    "tiny": (Case("tiny", "two layers of 64", 64, 2, 2, 32, 8, 4, 0, 1, 1), 2),
}
"""Shape and number of ranks; `tiny` shows that everything runs."""


def settings(case: Case, text: Text, run: Path) -> RunConfig:
    """The run that is measured: nothing is due in it but what is asked for here."""
    config = run_config(SYSTEMS[0], Training(case), text, "cpu")
    return config.model_copy(
        update={
            "run_dir": str(run),
            "engine": config.engine.model_copy(update={"zero_stage": 1}),
            "data": config.data.model_copy(update={"workers": 0}),
        }
    )


class Measured:
    """A training on one rank, and its clock."""

    def __init__(self, config: RunConfig, steps: int) -> None:
        import torch

        from maskloom.distributed import World
        from maskloom.train.engine.engine import start_distributed
        from maskloom.train.rank.heartbeats import Pulse
        from maskloom.train.setup import prepare as prepared
        from maskloom.train.setup import set_up

        world = World.discover()
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world.local_size))
        traffic = start_distributed(world, 600.0)
        config, plan = prepared(config, world)
        self.world, self.run, self.steps = world, Path(config.run_dir), steps
        self.trainer, _ = set_up(config, plan, world, traffic, Pulse())
        self.batches: Iterator[Any] = self.trainer.steps()
        self.theirs = self.trainer.engine.deepspeed.checkpoint_engine

    def seconds(self, work: Callable[[], Any]) -> float:
        """Of the slowest rank."""
        import torch

        from maskloom.distributed import barrier, max_over_ranks

        barrier()
        began_s = time.perf_counter()
        work()
        return float(max_over_ranks(torch.tensor(time.perf_counter() - began_s, dtype=torch.float64)))

    def train(self) -> None:
        from maskloom.train.step import train_step

        for _ in range(self.steps):
            self.trainer.saver.follow()
            train_step(next(self.batches), self.trainer, self.trainer.engine)

    def save_ours(self) -> dict[str, float]:
        from maskloom.train.due import save

        began_s, durable = time.perf_counter(), []
        target = self.run / "checkpoints" / f"step-{self.trainer.step:08d}"

        def watch() -> None:
            while not target.exists():
                time.sleep(0.005)
            durable.append(time.perf_counter() - began_s)

        watching = threading.Thread(target=watch, daemon=True)
        watching.start()
        call_s = self.seconds(lambda: save(self.trainer))
        after_s = self.seconds(self.train)
        self.trainer.saver.finish(must_succeed=True)
        watching.join()
        return {"call_s": call_s, "after_s": after_s, "durable_s": durable[0]}

    def save_theirs(self) -> dict[str, float]:
        engine = self.trainer.engine.deepspeed
        engine.__dict__.pop("_copy_recovery_script", None)
        engine.checkpoint_engine = self.theirs
        folder = self.run / "theirs"
        call_s = self.seconds(lambda: engine.save_checkpoint(str(folder), tag=f"step-{self.trainer.step}"))
        after_s = self.seconds(self.train)
        return {"call_s": call_s, "after_s": after_s}

    def load_ours(self) -> float:
        from maskloom.train import checkpoint

        self.forget_files()

        def load() -> None:
            found = checkpoint.find(self.run, self.world)
            assert found is not None
            self.trainer.engine.load(found[0], same_spread=True, same_precision=True)

        return self.seconds(load)

    def load_theirs(self) -> float:
        self.forget_files()
        self.trainer.engine.deepspeed.checkpoint_engine = self.theirs
        return self.seconds(lambda: self.trainer.engine.deepspeed.load_checkpoint(str(self.run / "theirs")))

    def forget_files(self) -> None:
        """Have no content of a file in memory, as on the machine where a run resumes."""
        for file in self.run.rglob("*.pt"):
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def keep_newest(self) -> None:
        from maskloom.distributed import barrier

        barrier()
        if self.world.is_first:
            for folder in sorted((self.run / "theirs").glob("step-*"), key=lambda path: path.stat().st_mtime)[:-1]:
                shutil.rmtree(folder)
        barrier()


def measure(rank: int, name: str, rounds: int, text: Text, run: str, port: int, answer: Any) -> None:
    case, ranks = CASES[name]
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank), "LOCAL_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    measured = Measured(settings(case, text, Path(run)), STEPS[name])
    found: dict[str, list[Any]] = {
        "undisturbed_s": [],
        "ours": [],
        "theirs": [],
        "load_ours_s": [],
        "load_theirs_s": [],
    }
    measured.train()
    for number in range(rounds + 1):
        found["undisturbed_s"].append(measured.seconds(measured.train))
        ways = [("ours", measured.save_ours), ("theirs", measured.save_theirs)]
        loads = [("load_ours_s", measured.load_ours), ("load_theirs_s", measured.load_theirs)]
        for key, save in ways if number % 2 else reversed(ways):
            found[key].append(save())
        measured.keep_newest()
        for key, load in loads if number % 2 else reversed(loads):
            found[key].append(load())
        if rank == 0:
            print(name, number, {key: values[-1] for key, values in found.items()}, flush=True)
    if rank == 0:
        size = sum(file.stat().st_size for file in next((Path(run) / "theirs").glob("step-*")).iterdir())
        answer.put(
            {key: values[1:] for key, values in found.items()} | {"checkpoint_bytes": size}
        )  # the first warms up


def summary(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """Medians, and ours relative to DeepSpeed's; where what DeepSpeed's costs is lost in the noise of the steps, no ratio."""
    case, ranks = CASES[name]
    noise_s = statistics.stdev(found["undisturbed_s"]) if len(found["undisturbed_s"]) > 1 else 0.0
    undisturbed_s = statistics.median(found["undisturbed_s"])

    def held_up(way: str) -> float:
        return statistics.median(turn["call_s"] + turn["after_s"] - undisturbed_s for turn in found[way])

    ours_s, theirs_s = held_up("ours"), held_up("theirs")
    load_ours_s, load_theirs_s = (statistics.median(found[key]) for key in ("load_ours_s", "load_theirs_s"))
    return {
        "case": name,
        "title": case.title,
        "ranks": ranks,
        "checkpoint_bytes": found["checkpoint_bytes"],
        "step_s": undisturbed_s / STEPS[name],
        "noise_s": noise_s,
        "maskloom": {
            "held_up_s": ours_s,
            "call_s": statistics.median(turn["call_s"] for turn in found["ours"]),
            "durable_s": statistics.median(turn["durable_s"] for turn in found["ours"]),
            "load_s": load_ours_s,
        },
        "deepspeed": {
            "held_up_s": theirs_s,
            "call_s": statistics.median(turn["call_s"] for turn in found["theirs"]),
            "load_s": load_theirs_s,
        },
        "held_up_ratio": ours_s / theirs_s if theirs_s > 2 * noise_s else None,
        "load_ratio": load_ours_s / load_theirs_s,
        "rounds": found,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--cases", default="base,two-ranks", help=f"of {', '.join(CASES)}")
    add("--rounds", type=int, default=5)
    add("--folder", type=Path, help="where checkpoints are written (default: a temporary folder beside --cache)")
    add("--cache", type=Path, default=HERE / ".cache" / "step", help="prepared text")
    add("--out", type=Path, default=HERE / "results" / "checkpoint.json")
    options = parser.parse_args()
    text = prepare(options.cache, 30_522, 32 << 10, len(os.sched_getaffinity(0)))
    results = []
    for name in options.cases.split(","):
        with tempfile.TemporaryDirectory(dir=options.folder or options.cache) as folder, socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            probe.close()
            context = multiprocessing.get_context("spawn")
            answer = context.SimpleQueue()
            arguments = (name, options.rounds, text, str(Path(folder) / "run"), port, answer)
            ranks = [context.Process(target=measure, args=(rank, *arguments)) for rank in range(CASES[name][1])]
            for rank in ranks:
                rank.start()
            for rank in ranks:
                rank.join()
            if any(rank.exitcode for rank in ranks):
                print(f"{name}: a rank failed", file=sys.stderr)
                return 1
            results.append(summary(name, answer.get()))
        print(json.dumps({key: value for key, value in results[-1].items() if key != "rounds"}, indent=1), flush=True)
    command = f"python benchmarks/checkpoint.py --cases {options.cases} --rounds {options.rounds}"
    content = {**stamp(command, "cpu"), "cases": results}
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
