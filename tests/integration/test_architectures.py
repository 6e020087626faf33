"""What BERT has, for the other architectures: one loss and one gradient whatever the layout, and runs that are killed.

Few processes train all runs, one after the other. ModernBERT has four layers of both kinds, pieces beyond its window, and
two bases of frequencies.
"""

from __future__ import annotations

import functools
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.architectures import tiny

from .conftest import batches_of, final_weights, lines, losses, note_rows, train_in_ranks
from .test_checkpoints import OPTIMIZERS, forget_after

STEPS, ROWS = 3, 12
FULL, KIN = ("roberta", "modernbert"), ("xlm-roberta", "camembert")
"""Those whose forward is code of its own, and those that share RoBERTa's."""
NOTHING_KEPT = {
    "stage3_param_persistence_threshold": 0,  # by default every parameter of a model as small as these stays gathered
    "stage3_max_reuse_distance": 0,
    "stage3_max_live_parameters": 0,
}


@dataclass(frozen=True)
class Kind:
    """What a reference differs in from the others: its batches, and settings of its model."""

    rows: int = ROWS
    seq_len: int = 32
    model: dict[str, Any] = field(default_factory=dict)


PLAIN = Kind()
BIASES = ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias")
UNTIED = {**dict.fromkeys(BIASES, True), "decoder_bias": False, "tie_word_embeddings": False, "local_attention": 11}
KINDS = {
    "long": Kind(6, 2048, {"max_position_embeddings": 2048}),  # beyond what has a mask of its row
    "untied": Kind(model=UNTIED),
}


@dataclass(frozen=True)
class Case:
    """A run of three steps, whose losses and weights are those of one rank with one big micro-batch at stage 0."""

    architecture: str
    stage: int
    ranks: int
    micro_batch_rows: int = 3
    engine: dict[str, Any] = field(default_factory=dict)
    zero: dict[str, Any] = field(default_factory=dict)
    tokens: bool = False
    kind: str = ""

    @property
    def precision(self) -> str:
        return str(self.engine.get("precision", "fp32"))

    @property
    def name(self) -> str:
        chosen = [*self.engine.values(), *("nothing kept" for _ in self.zero), *("tokens" for _ in range(self.tokens))]
        rest = " ".join(dict.fromkeys(map(str, chosen)))
        name = f"{self.architecture} {self.kind} zero {self.stage} of {self.ranks} by {self.micro_batch_rows} {rest}"
        return " ".join(name.split())


def cases() -> list[Case]:
    found = []
    for name in FULL:
        found += [Case(name, 2, 1), Case(name, 0, 1, engine={"kernels": "onednn"})]
        found += [Case(name, stage, 2) for stage in (0, 2)] + [Case(name, 1, 2, tokens=True)]
        found += [Case(name, 3, 2, zero=NOTHING_KEPT, engine={"activation_checkpointing": True})]
        # Four rows a rank: the second micro-batch is filled with rows of weight 0.
        found += [Case(name, stage, 3) for stage in (0, 1, 2)] + [Case(name, 3, 3, zero=NOTHING_KEPT)]
        found += [Case(name, stage, 2, engine={"precision": "bf16"}) for stage in (1, 2, 3)]
        found += [Case(name, stage, 2, engine={"precision": "fp16"}) for stage in (1, 3)]
    found += [Case(name, 3, 2, zero=NOTHING_KEPT) for name in KIN]
    for kind in KINDS:
        checkpoints = {"activation_checkpointing": True}
        found += [Case("modernbert", 1, 2, 1, checkpoints, kind=kind), Case("modernbert", 0, 3, 2, kind=kind)]
        found += [Case("modernbert", 3, 3, 1, zero=NOTHING_KEPT, kind=kind)]
    return sorted(found, key=lambda case: case.stage)  # stage 3 leaves traces in a process


def reference(architecture: str, kind: str = "") -> Case:
    return Case(architecture, 0, 1, KINDS.get(kind, PLAIN).rows, kind=kind)


@pytest.fixture(scope="module")
def trained(
    corpus_dir: Path, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory, maskloom: Callable[..., Any]
) -> Path:
    """A folder with the run of every case and reference, and with the digests of their batches."""
    folder = tmp_path_factory.mktemp("architectures")
    done = maskloom("shards", corpus_dir, folder / "tokens", "--tokenizer", tokenizer_dir, "--processes", "1")
    assert done.returncode == 0, done.stderr
    every = [*map(reference, FULL + KIN), *(reference("modernbert", kind) for kind in KINDS), *cases()]
    patch = functools.partial(notes_rows, str(folder / "batches"))
    for ranks in (1, 2, 3):
        configs = [write(folder, case, corpus_dir, tokenizer_dir) for case in every if case.ranks == ranks]
        train_in_ranks(configs, ranks, folder / f"{ranks}.log", fake_fp16=True, patch=patch)
    return folder


def write(folder: Path, case: Case, corpus: Path, tokenizer: Path) -> Path:
    """The case's configuration file."""
    kind = KINDS.get(case.kind, PLAIN)
    rows = {"global_batch_rows": kind.rows, "micro_batch_rows": case.micro_batch_rows}
    deepspeed: dict[str, Any] = {"zero_optimization": case.zero} if case.zero else {}
    if case.precision == "fp16":
        deepspeed["fp16"] = {"initial_scale_power": 8}
    tree = {
        "run_dir": str(folder / case.name),
        "seed": 3,
        "tokenizer": str(tokenizer),
        "data": {"train": str(folder / "tokens" if case.tokens else corpus), "lanes": 6, "workers": 0},
        "model": {**tiny(case.architecture), **kind.model},
        "optimizer": {"lr": 1e-3, "gradient_clipping": 0.0},
        "phases": [{"steps": STEPS, "seq_len": kind.seq_len, **rows}],
        "engine": {"zero_stage": case.stage, "precision": "fp32", **case.engine},
        "deepspeed": deepspeed,
        "checkpoint": {"every_steps": 0},
        "logging": {"every_steps": 1},
    }
    path = folder / f"{case.name}.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def notes_rows(batches: str) -> None:
    """In a rank: list the rows that it is given."""
    from maskloom.train import loop

    step = loop.train_step

    def train_step(batch: Any, trainer: Any, engine: Any) -> Any:
        note_rows(batches, batch, trainer)
        return step(batch, trainer, engine)

    loop.train_step = train_step


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_every_layout_learns_what_one_big_batch_learns(case: Case, trained: Path) -> None:
    whole, run = lines(trained / reference(case.architecture, case.kind).name), lines(trained / case.name)
    assert [line["step"] for line in run] == [1, 2, 3]
    for one, other in zip(whole, run, strict=True):
        assert other["tokens_seen"] == one["tokens_seen"]
        # Rounding of sums; or of numbers of 8 bits (11 in fp16), which a mean over 55 tokens makes less.
        exact = case.precision == "fp32"
        assert other["loss"] == pytest.approx(one["loss"], **({"abs": 2e-6} if exact else {"rel": 2**-10}))
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=5e-6 if exact else 2**-7)
    if case.precision == "fp32":
        expected = final_weights(trained / reference(case.architecture, case.kind).name)
        found = final_weights(trained / case.name)
        assert found.keys() == expected.keys()
        for name, weight in found.items():
            # Adam divides by the gradient's size: where that is rounding noise (key.bias), so is the step.
            if "key.bias" not in name:
                assert (weight - expected[name]).abs().max() < 5e-6, name


def test_all_layouts_of_all_architectures_read_one_batch(trained: Path) -> None:
    plain = [case.name for case in cases() if KINDS.get(case.kind, PLAIN).seq_len == PLAIN.seq_len]
    found = {name: batches_of(trained / "batches", name) for name in plain}
    expected = batches_of(trained / "batches", reference("modernbert").name)
    assert expected.keys() == {(step, lane) for step in (1, 2, 3) for lane in range(6)}
    assert [name for name, rows in found.items() if rows != expected] == []


LONG = {"steps": 12, "seq_len": 1536, "global_batch_rows": 6, "micro_batch_rows": 1}  # pieces one by one, and blocks
SHORT = {"steps": 12, "seq_len": 48, "global_batch_rows": 12, "micro_batch_rows": 3}  # rows with masks, and blocks
# Architecture, stage, precision, optimizer, second phase
KILLED = [
    ("roberta", 1, "fp32", "adamw", SHORT),
    ("modernbert", 0, "fp32", "adamw", LONG),
    ("modernbert", 3, "bf16", "adamw", SHORT),
    ("modernbert", 1, "bf16", "muon", SHORT),
]


def test_a_run_that_is_killed_resumes_with_the_same_bits(
    run_config: dict, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    """SIGKILL for both ranks at a random moment: with readers, every dropout on, and over a change of the sequence length."""
    log = tmp_path / "output.log"

    def config(kind: str, architecture: str, stage: int, precision: str, optimizer: str, second: dict) -> Path:
        name = f"{kind}-{architecture}-{stage}-{optimizer}"
        tree = {
            **run_config,
            "run_dir": str(tmp_path / name),
            "data": {**run_config["data"], "workers": 1},
            "model": {**tiny(architecture, dropout=0.1), "max_position_embeddings": 2 * second["seq_len"]},
            "optimizer": {**OPTIMIZERS[optimizer], "warmup_steps": 2},
            "phases": [{**SHORT, "steps": 4, "seq_len": 32}, second],
            "engine": {"zero_stage": stage, "precision": precision, "activation_checkpointing": stage == 3},
            "checkpoint": {"every_steps": 3, "background": False},  # there is one at the fourth step
        }
        return write_config(tree, f"{name}.yaml")

    train_in_ranks([config("whole", *case) for case in KILLED], 2, log, compiles=False)
    moment = random.Random(os.getpid())
    for case in KILLED:
        killed = config("killed", *case)
        kill = functools.partial(kill_after, tmp_path / killed.stem, moment.randrange(4, 12))
        train_in_ranks([killed], 2, log, compiles=False, expect=-signal.SIGKILL, meanwhile=kill)
    output = train_in_ranks([config("killed", *case) for case in KILLED], 2, log, compiles=False)
    assert output.count("resuming after step ") == len(KILLED)
    for case in KILLED:
        whole, killed = (tmp_path / config(kind, *case).stem for kind in ("whole", "killed"))
        assert list(losses(whole)) == list(range(1, 17)), case
        assert losses(killed) == losses(whole), case
        weights = final_weights(killed)
        assert [name for name, one in final_weights(whole).items() if not torch.equal(one, weights[name])] == [], case


def kill_after(run: Path, step: int, pids: list[int]) -> None:
    """Kill processes once a run has logged so many steps."""
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or len(losses(run)) < step:
        assert time.monotonic() < deadline, f"no {step} steps in time"
        time.sleep(0.002)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


# Architecture, optimizer, precision, stages
WAYS = [
    ("roberta", "adamw", "fp32", (1, 3, 0)),
    ("roberta", "adamw", "fp32", (3, 2, 1)),
    ("roberta", "lamb", "fp32", (0, 2, 3)),
    ("modernbert", "adamw", "fp32", (2, 0, 3)),
    ("modernbert", "adamw", "fp32", (3, 1, 2)),
    ("modernbert", "lamb", "fp32", (1, 3, 0)),
    ("modernbert", "muon", "fp32", (2, 1, 3)),
    ("modernbert", "adamw", "bf16", (1, 3, 2)),  # stage 1 is DeepSpeed's BF16_Optimizer
    ("xlm-roberta", "adamw", "fp32", (1, 3, 2)),
    ("camembert", "adamw", "fp32", (3, 2, 0)),
]


def test_a_run_resumes_at_another_stage_and_number_of_ranks(
    run_config: dict, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    """Three steps on two ranks, on three, and on one, each at another stage, beside the run that stays as it began."""
    log = tmp_path / "output.log"

    def config(number: int, leg: int) -> Path:
        architecture, optimizer, precision, stages = WAYS[number]
        tree = {
            **run_config,
            "run_dir": str(tmp_path / f"run{number}"),
            "model": tiny(architecture),
            "optimizer": OPTIMIZERS[optimizer],
            "phases": [{"steps": 9, "seq_len": 32, "global_batch_rows": 12, "micro_batch_rows": 2}],
            "engine": {"zero_stage": stages[leg], "precision": precision},
            "checkpoint": {"every_steps": 3, "keep_last": 9},
        }
        return write_config(tree, f"{number}-{leg}.yaml")

    numbers, whole, weights = range(len(WAYS)), {}, {}
    for leg, ranks in enumerate((2, 3, 1)):
        output = train_in_ranks([config(number, leg) for number in numbers], ranks, log, compiles=False)
        assert output.count(f"resuming after step {3 * leg} of 9") == (len(WAYS) if leg else 0)
        for number in numbers:
            run = tmp_path / f"run{number}"
            if leg == 0:
                whole[number], weights[number] = losses(run), final_weights(run)
            if leg < 2:
                forget_after(run, 3 * leg + 3)
    for number, way in enumerate(WAYS):
        is_half = way[2] == "bf16"
        found, expected = losses(tmp_path / f"run{number}"), whole[number]
        assert found == pytest.approx(expected, rel=0, abs=2e-3 if is_half else 1e-6), way
        for name, weight in ({} if is_half else final_weights(tmp_path / f"run{number}")).items():
            if "key.bias" not in name:
                assert (weight - weights[number][name]).abs().max() < 1e-5, f"{way}: {name}"
