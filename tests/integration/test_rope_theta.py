"""A longer context in the same run: a phase sets the base of the rotary frequencies (`phases.N.global_rope_theta`)."""

from __future__ import annotations

import functools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import ModernBertForMaskedLM

from maskloom.cli import main
from maskloom.commands.loading import load_run

from .conftest import final_weights, losses, tiny, train_in_ranks

SHORT, LONG = 10_000.0, 160_000.0
STEPS, CHANGE = 12, 6
"""Of the run, and of its first phase."""


@pytest.fixture(scope="module")
def runs(corpus_dir: Path, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with these runs, which differ in nothing else:

    whole   two phases, each with a base of its own
    killed  the same, killed before the change, right after it, and resumed
    same    the second phase names no base
    fork    begun from `whole` within its second phase; no phase names a base
    """
    folder = tmp_path_factory.mktemp("rope_theta")

    def write(name: str, *thetas: float | None, **more: object) -> Path:
        phases: list[dict[str, object]] = [
            {"steps": CHANGE, "seq_len": 32, "global_batch_rows": 12, "micro_batch_rows": 6},
            {"steps": STEPS - CHANGE, "seq_len": 64, "global_batch_rows": 6, "micro_batch_rows": 6},
        ]
        for phase, theta in zip(phases, thetas, strict=False):
            phase |= {"global_rope_theta": theta}
        tree = {
            "run_dir": str(folder / name),
            "seed": 3,
            "tokenizer": str(tokenizer_dir),
            "data": {"train": str(corpus_dir), "lanes": 6, "workers": 0},
            # New weights as small as usual hardly attend to any place more than to another.
            "model": tiny("modernbert", 0.1) | {"initializer_range": 0.2},
            "optimizer": {"lr": 1e-3, "warmup_steps": 2},
            "phases": phases,
            "checkpoint": {"every_steps": 2, "keep_last": STEPS},
            "evaluation": {"every_steps": 3, "seq_len": 64},
            "logging": {"every_steps": 1},
            **more,
        }
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return path

    plain = [
        write("whole", SHORT, LONG),
        write("same", SHORT, None),
        write("fork", **{"from": f"{folder / 'whole'}@{CHANGE + 2}"}),
    ]
    train_in_ranks(plain, 1, folder / "log")
    killed = write("killed", SHORT, LONG)
    for step in (CHANGE - 1, CHANGE + 1):
        patch = functools.partial(die_after, step)
        train_in_ranks([killed], 1, folder / "log", expect=-signal.SIGKILL, patch=patch)
    train_in_ranks([killed], 1, folder / "log")
    return folder


def die_after(step: int) -> None:
    """In a rank: end without a word once so many steps are done, and the checkpoints before them are whole."""
    from maskloom.train import loop

    train_step = loop.train_step

    def dying(batch: Any, trainer: Any, engine: Any) -> Any:
        result = train_step(batch, trainer, engine)
        if result.step == step:
            trainer.saver.finish()
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    loop.train_step = dying


def evaluations(run: Path) -> dict[int, float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["evaluation_loss"] for line in lines if "evaluation_loss" in line}


def test_a_run_that_is_killed_around_the_change_is_the_run_that_was_not(runs: Path) -> None:
    assert losses(runs / "killed") == losses(runs / "whole")
    assert list(losses(runs / "whole")) == list(range(1, STEPS + 1))
    assert evaluations(runs / "killed") == evaluations(runs / "whole")
    one, other = final_weights(runs / "whole"), final_weights(runs / "killed")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_base_takes_effect_at_the_first_step_of_its_phase(runs: Path) -> None:
    whole, same = losses(runs / "whole"), losses(runs / "same")
    assert {step for step in whole if whole[step] != same[step]} == set(range(CHANGE + 1, STEPS + 1))
    whole, same = evaluations(runs / "whole"), evaluations(runs / "same")
    assert {step for step in whole if whole[step] != same[step]} == {CHANGE + 3, STEPS}


def test_a_fork_continues_with_its_origins_base(runs: Path) -> None:
    whole, fork = losses(runs / "whole"), losses(runs / "fork")
    assert fork == {step: whole[step] for step in range(CHANGE + 3, STEPS + 1)}


@pytest.mark.parametrize(
    ("run", "step", "theta"),
    [
        ("whole", CHANGE, SHORT),
        ("whole", CHANGE + 2, LONG),
        ("killed", STEPS, LONG),
        ("same", STEPS, SHORT),
        ("fork", STEPS, LONG),
    ],
)
def test_an_export_has_the_base_of_its_step(run: str, step: int, theta: float, runs: Path, tmp_path: Path) -> None:
    assert main(["export", str(runs / run), str(tmp_path / "out"), "--step", str(step)]) == 0
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["global_rope_theta"] == written["rope_parameters"]["full_attention"]["rope_theta"] == theta
    theirs = ModernBertForMaskedLM.from_pretrained(tmp_path / "out")
    assert theirs.config.rope_parameters["full_attention"]["rope_theta"] == theta
    ours = load_run(runs / run, step).model
    assert set(ours.architecture.rope_thetas(ours.config)) == {theta, 100.0}


def test_what_a_run_began_with_stays(runs: Path) -> None:
    began = {run: json.loads((runs / run / "model" / "config.json").read_text()) for run in ("whole", "killed", "fork")}
    assert {run: config["global_rope_theta"] for run, config in began.items()} == {
        "whole": SHORT,
        "killed": SHORT,
        "fork": LONG,
    }


def test_a_model_without_one_is_refused(
    run_config: dict, write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run_config["phases"][0]["global_rope_theta"] = LONG
    assert main(["train", str(write_config(run_config)), "--processes", "1"]) == 1
    assert "phases.0.global_rope_theta 160000: architecture bert has no global_rope_theta" in capsys.readouterr().err
