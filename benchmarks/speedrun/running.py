"""One training of a record: its CPU-seconds and its held-out loss, by `maskloom train` and `maskloom eval`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import stamp

from maskloom.errors import UserError
from speedrun.meter import VARIABLE
from speedrun.records import FIXED, LIMIT_CPU_S, ROOT, Record, recipe_of

PACKAGES = "maskloom torch deepspeed transformers tokenizers".split()


def measure(record: Record, data: Path, seed: int, processes: int, quiet: bool = False) -> dict[str, Any]:
    """Train and evaluate a record with one seed.

    Args:
        data: folder with `shards` and `tokenizer`.

    Raises:
        UserError: a command failed, or the training took more than `LIMIT_CPU_S`.
    """
    with tempfile.TemporaryDirectory(prefix="speedrun-") as scratch:
        folder = Path(scratch)
        began_s = time.perf_counter()
        _maskloom(train_arguments(record, data, seed, processes, folder / "run"), folder, quiet)
        trained_s = time.perf_counter() - began_s
        cpu_s = cpu_seconds(folder, processes)
        figures = json.loads(_maskloom(["eval", str(folder / "run"), "--json"], folder, quiet=True))
    if cpu_s > LIMIT_CPU_S:
        steps = int(figures["step"] * 0.98 * LIMIT_CPU_S / cpu_s)
        raise UserError(
            f"{record.name}, seed {seed}: {cpu_s:.1f} CPU-seconds are more than {LIMIT_CPU_S:g}, so it is not a record "
            f"(held-out loss {figures['evaluation_loss']:.3f}): lower its steps, to about {steps:,}"
        )
    return {
        "name": record.name,
        "recipe": recipe_of(record),
        "seed": seed,
        "steps": figures["step"],
        "loss": figures["evaluation_loss"],
        "accuracy": figures["evaluation_accuracy"],
        "predicted_tokens": figures["evaluation_tokens"],
        "cpu_s": cpu_s,
        "wall_s": trained_s,
        "processes": processes,
        **stamp(record.command, "cpu", PACKAGES),
    }


def train_arguments(record: Record, data: Path, seed: int, processes: int, run: Path) -> list[str]:
    """Of `maskloom`, to train a record in the folder `run`, on the text and with the tokenizer that all records share."""
    return [
        *(
            "train",
            record.config,
            "--processes",
            str(processes),
            "--import",
            "speedrun.meter",
            *record.overrides,
            *FIXED,
        ),
        *(f"run_dir={run}", f"data.train={data / 'shards'}", f"tokenizer={data / 'tokenizer'}", f"seed={seed}"),
    ]


def cpu_seconds(folder: Path, processes: int) -> float:
    """Over all ranks, from what their meters wrote."""
    files = [folder / f"rank-{rank}.json" for rank in range(processes)]
    return float(sum(json.loads(file.read_text(encoding="utf-8"))["cpu_s"] for file in files))


def _maskloom(arguments: Sequence[str], folder: Path, quiet: bool) -> str:
    """Run the program, and return what it printed."""
    paths = [str(ROOT / "src"), str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), VARIABLE: str(folder)}
    command = [sys.executable, "-m", "maskloom.cli", *arguments]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if not quiet:
                print(line, end="", flush=True)
    if process.returncode:
        raise UserError(f"`maskloom {' '.join(arguments)}` ended with exit code {process.returncode}")
    return "".join(said)
