"""One small training, in three starts: to its end; a fork at its half, which does the second half again; and on, in place.

    start    1 ... N/2 ... N                      losses are finite, and fall
    fork           N/2 ... N                      the losses of the first: on a CPU bit for bit, on a GPU to rounding
    resume                 N ... more steps       resumes after step N, and does only what is left

Four layers of BERT-base's or ModernBERT-base's width on a GPU, two layers of 64 on a CPU. Rates are not looked at: several
trainings run at once.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

SHAPES = {
    "cuda": {"hidden_size": 768, "num_hidden_layers": 4, "num_attention_heads": 12, "intermediate_size": 3072},
    "cpu": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128},
}
ARCHITECTURES: dict[str, dict[str, Any]] = {"bert": {}, "modernbert": {"local_attention": 32}}
"""Architectures that are trained, and what is theirs: windows that are shorter than a row."""
PHASES = {
    "cuda": {"steps": 50, "seq_len": 128, "global_batch_rows": 256, "micro_batch_rows": 128},
    "cpu": {"steps": 6, "seq_len": 64, "global_batch_rows": 8, "micro_batch_rows": 4},
}
MORE_STEPS = {"cuda": 10, "cpu": 2}
WARMUP_STEPS, LR = {"cuda": 10, "cpu": 2}, {"cuda": 2e-4, "cpu": 4e-3}
FIRST_DIFFERENCE = {"cuda": 2e-3, "cpu": 0.0}
"""Largest difference of a loss, in nats, at the first step of the fork: of one forward with the same weights, batch and masks.
Other masks would differ by some 0.05: the loss of a token spreads by about 3, and a batch predicts some 4,500."""
LARGEST_DIFFERENCE = {"cuda": 3e-2, "cpu": 0.0}
"""The same of any step: rounding that 25 steps carried on."""


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """The configuration of the first start."""
    device, phase = options.device, PHASES[options.device]
    data = json.loads(options.data.read_text(encoding="utf-8"))
    return {
        "run_dir": str(run_dir(options)),
        "tokenizer": data["tokenizer"],
        "data": {"train": data["corpus"], "workers": 1},
        "model": {
            "architecture": options.architecture,
            **SHAPES[device],
            **ARCHITECTURES[options.architecture],
            "max_position_embeddings": phase["seq_len"],
        },
        "phases": [phase],
        "optimizer": {"lr": LR[device], "warmup_steps": WARMUP_STEPS[device]},
        "evaluation": {"every_steps": phase["steps"]},
        "checkpoint": {"every_steps": phase["steps"] // 2},
        "logging": {"every_steps": 1},
        "engine": {"precision": options.precision, "zero_stage": options.zero, "kernels": options.kernels},
    }


def run_dir(options: argparse.Namespace) -> Path:
    return options.folder / f"{options.architecture}-{options.precision}-zero{options.zero}-{options.kernels}"


def start(config: Path, *overrides: str) -> list[str]:
    """Train; returns the lines that tell how. Raises RuntimeError where it does not end well."""
    process = subprocess.Popen(
        [sys.executable, "-m", "maskloom.train", str(config), *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdout
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line.strip())
    if process.wait():
        raise RuntimeError(f"a training with {' '.join(overrides) or 'no override'} ended with {process.returncode}")
    return [line for line in lines if line.startswith(("engine:", "optimizer:"))]


def measured(folder: Path) -> dict[int, dict[str, Any]]:
    """The lines of metrics.jsonl that have a loss, by step."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {line["step"]: line for line in map(json.loads, lines) if "loss" in line}


def faults(device: str, losses: dict[str, dict[int, float]], steps: int) -> list[str]:
    """What is wrong with the losses, by step, of `start`, `fork` and `resume`."""
    half, total = steps // 2, steps + MORE_STEPS[device]
    begun, forked, resumed = losses["start"], losses["fork"], losses["resume"]
    wrong = []
    expected = {"start": range(1, steps + 1), "fork": range(half + 1, steps + 1), "resume": range(steps + 1, total + 1)}
    for name, numbers in expected.items():
        if sorted(losses[name]) != [*numbers]:
            wrong.append(f"{name} did the steps {sorted(losses[name])}, not {numbers.start} to {numbers.stop - 1}")
        if not all(math.isfinite(loss) for loss in losses[name].values()):
            wrong.append(f"{name} has losses that are not finite: {losses[name]}")
    if wrong:
        return wrong
    if min(list(begun.values())[-3:]) >= begun[1]:
        wrong.append(f"the loss does not fall: {begun[1]} at step 1, {begun[steps]} at step {steps}")
    apart = differences(begun, forked)
    if apart["first"] > FIRST_DIFFERENCE[device] or apart["largest"] > LARGEST_DIFFERENCE[device]:
        wrong.append(f"the fork's losses are not those of the run that it left: {apart}")
    if resumed[steps + 1] >= begun[1]:
        wrong.append(
            f"the resumed run lost what was learned: {begun[1]} at step 1, {resumed[steps + 1]} at step {steps + 1}"
        )
    return wrong


def differences(begun: dict[int, float], forked: dict[int, float]) -> dict[str, float]:
    """Of the losses of the fork's first step, and the largest of any."""
    apart = [abs(forked[step] - begun[step]) for step in sorted(forked)]
    return {"first": apart[0], "largest": max(apart)}


def train(options: argparse.Namespace) -> int:
    """The three starts; returns 1 where something is wrong."""
    folder, steps = run_dir(options), PHASES[options.device]["steps"]
    fork, total = folder.with_name(f"{folder.name}-fork"), steps + MORE_STEPS[options.device]
    config = write(options)
    said = start(config)
    begun = measured(folder)
    start(config, f"from={folder}@{steps // 2}", f"run_dir={fork}")
    forked = measured(fork)
    shutil.rmtree(fork)
    start(config, f"phases.0.steps={total}")
    resumed = {step: line for step, line in measured(folder).items() if step > steps}
    shutil.rmtree(folder)
    starts = {"start": begun, "fork": forked, "resume": resumed}
    losses = {name: {step: line["loss"] for step, line in lines.items()} for name, lines in starts.items()}
    wrong = faults(options.device, losses, steps)
    for fault in wrong:
        print(fault)
    found = {"said": said, "losses": losses, "memory_peak_bytes": begun[steps]["memory_peak_bytes"], "faults": wrong}
    if not wrong:
        found["difference_of_the_fork"] = differences(losses["start"], losses["fork"])
        print(f"difference of the fork: {found['difference_of_the_fork']}")
    options.out.write_text(json.dumps(found), encoding="utf-8")
    return 1 if wrong else 0


def write(options: argparse.Namespace) -> Path:
    file = options.folder / f"{run_dir(options).name}.yaml"
    file.write_text(yaml.safe_dump(settings(options)), encoding="utf-8")
    return file


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--data", type=Path, required=True, help="what data.py found")
    parser.add_argument("--folder", type=Path, required=True, help="for configurations and runs")
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="bert")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--zero", type=int, default=1)
    parser.add_argument("--kernels", default="eager")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--doctor", action="store_true", help="`maskloom doctor` of the configuration, and no training")
    options = parser.parse_args()
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():  # it would train on the CPU, for an hour
            raise SystemExit("torch can use no GPU here: see docs/install.md")
    if options.doctor:
        return subprocess.call([sys.executable, "-m", "maskloom.cli", "doctor", str(write(options))])
    try:
        return train(options)
    except RuntimeError as error:  # what was wrong the training has said
        print(error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
