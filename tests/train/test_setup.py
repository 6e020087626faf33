"""What is checked and derived before a run begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from maskloom.config import Evaluation
from maskloom.config_file import load_config
from maskloom.distributed import World
from maskloom.errors import UserError
from maskloom.train.checkpoint import State
from maskloom.train.held_out import HeldOut
from maskloom.train.setup import checked_evaluation, deepspeed_settings, held_out_of, phase_layouts, prepare

Write = Callable[[dict], Path]


def test_what_was_derived_is_filled_in(run_config: dict, write_config: Write) -> None:
    run_config["data"].pop("lanes", None)
    config, plan = prepare(load_config(write_config(run_config)), World())
    assert config.data.lanes == plan.lanes
    assert config.engine.precision != "auto"
    assert config.engine.kernels != "auto"


def test_nothing_is_written(run_config: dict, write_config: Write) -> None:
    config, _ = prepare(load_config(write_config(run_config)), World())
    assert not Path(config.run_dir).exists()


@pytest.mark.parametrize(
    ("held_out", "every_steps", "said"),
    [
        ({"a": 3}, 4, []),
        ({"a": 0}, 0, ["no held-out documents in a: no evaluation"]),
        ({"a": 3, "b": 0}, 4, ["no held-out documents in b: the evaluation says nothing about it"]),
        ({"a": 0, "b": 0}, 0, ["in a: the eval", "in b: the eval", "no held-out documents in a, b: no evaluation"]),
    ],
)
def test_an_evaluation_needs_held_out_documents(
    held_out: dict[str, int], every_steps: int, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    corpora: Any = [SimpleNamespace(folder=folder, held_out_blocks=[0] * n) for folder, n in held_out.items()]
    for world, expected in ((World(), said), (World(1, 2), [])):  # the first rank speaks
        assert checked_evaluation(Evaluation(every_steps=4), corpora, world).every_steps == every_steps
        warnings = capsys.readouterr().err.splitlines()
        assert len(warnings) == len(expected)
        assert all(text in line for text, line in zip(expected, warnings, strict=True))


def test_what_needs_evaluations_is_refused_without_held_out_documents() -> None:
    corpora: Any = [SimpleNamespace(folder="a", held_out_blocks=[])]
    with pytest.raises(UserError, match=r"no held-out documents in a, and checkpoint\.keep_best needs evaluations"):
        checked_evaluation(Evaluation(every_steps=4), corpora, World(), ["checkpoint.keep_best"])


def test_more_ranks_than_lanes_are_refused(run_config: dict, write_config: Write) -> None:
    config = load_config(write_config(run_config))
    with pytest.raises(UserError, match="lanes"):
        prepare(config, World(size=64))


def test_micro_batches_follow_from_the_world(run_config: dict, write_config: Write) -> None:
    phase = {"steps": 5, "seq_len": 32, "global_batch_rows": 24, "micro_batch_rows": 5}
    run_config["phases"] = [phase]
    config, plan = prepare(load_config(write_config(run_config)), World())
    for size, micro_batches, rows in ((1, 5, 5), (2, 3, 4), (6, 1, 4)):
        (layout,) = phase_layouts(config.phases, plan, World(size=size))
        assert (layout.micro_batches, layout.micro_batch_rows) == (micro_batches, rows)
    assert deepspeed_settings(config, plan, World(size=2))["train_micro_batch_size_per_gpu"] == 4


@pytest.mark.parametrize(
    ("settings", "is_own", "total_steps", "has", "said"),
    [
        ({}, True, 100, 2, ""),
        ({}, True, 200, 2, ""),  # patience counts anew from here
        ({}, False, 100, 0, ""),  # a fork, whose origin may be evaluated otherwise
        ({"mask_rate": 0.4}, True, 100, 0, "mask rate 0.15 before, and have 32 and 0.4 now"),
        ({"seq_len": 64}, True, 100, 0, "evaluations had 32 slots a row"),
    ],
)
def test_evaluations_of_a_checkpoint_are_those_of_the_run_if_their_losses_compare(
    settings: dict[str, Any],
    is_own: bool,
    total_steps: int,
    has: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    saved = HeldOut(32, 0.15, 100).with_loss(0, 6.0).with_loss(10, 5.0)
    state = State(10, 0, [], 0, {}, 1, 1, "fp32", held_out=saved.to_json())
    trainer: Any = SimpleNamespace(
        plan=SimpleNamespace(total_steps=total_steps),
        config=SimpleNamespace(evaluation_filled=Evaluation(**{"every_steps": 10, "seq_len": 32} | settings)),
        saver=SimpleNamespace(last_good="step-00000010" if is_own else None),
        step=10,
        world=World(),
    )
    found = held_out_of(trainer, state)
    assert len(found.evaluated) == has
    assert found.patient_from == (10 if total_steps > 100 else 0)
    assert said in capsys.readouterr().err
    assert not held_out_of(trainer, replace(state, held_out={})).evaluated, "a checkpoint from before they were kept"
