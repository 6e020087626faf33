"""The state of a run: its steps before and after a roll-back, its dropout, and the cursors of all ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from maskloom.config_file import load_config
from maskloom.data.cursors import first_cursors
from maskloom.distributed import World
from maskloom.train.rank.heartbeats import Pulse
from maskloom.train.rank.notices import Notices
from maskloom.train.refusal import GuardState, PassedOver
from maskloom.train.setup import phase_layouts, prepare
from maskloom.train.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture
def trainer(run_config: dict, write_config: Callable[[dict], Path]) -> Trainer:
    """At the beginning of a run, without an engine."""
    config, plan = prepare(load_config(write_config(run_config)), World())
    layouts = phase_layouts(config.phases, plan, World())
    nothing: Any = None
    made = Trainer(config, World(), CPU, layouts, Pulse(), Notices(), nothing, nothing, [], plan)
    made.step, made.cursors, made.guard = 0, first_cursors(plan.lanes), GuardState()
    made.shape = SimpleNamespace(distinct_windows=(None,))  # type: ignore[assignment]
    return made


def rows_of(trainer: Trainer, steps: Any, count: int) -> list[tuple[int, list[list[int]]]]:
    """Number and tokens of the next steps, taken."""
    found = []
    for _ in range(count):
        step = next(steps)
        found.append((step.number, step.rows.tokens.tolist()))
        trainer.step = step.number + 1
        for lane, cursors in step.cursors.items():
            trainer.cursors[lane] = cursors
    return found


def test_steps_begin_where_the_run_stands(trainer: Trainer) -> None:
    all_steps = rows_of(trainer, trainer.steps(), 4)
    assert [number for number, _ in all_steps] == [0, 1, 2, 3]
    trainer.step, trainer.cursors = 0, first_cursors(trainer.plan.lanes)
    rows_of(trainer, trainer.steps(), 2)
    assert rows_of(trainer, trainer.steps(), 2) == all_steps[2:]


def test_after_a_roll_back_the_same_iterator_continues_from_the_checkpoint(trainer: Trainer) -> None:
    steps = trainer.steps()
    before = rows_of(trainer, steps, 3)
    trainer.plan = replace(trainer.plan)  # as `restore` does
    trainer.step, trainer.cursors = 1, first_cursors(trainer.plan.lanes)
    after = rows_of(trainer, steps, 2)
    assert [number for number, _ in after] == [1, 2]
    assert after[0][1] == before[0][1], "from the cursors of the beginning"


def test_the_steps_end_with_the_run(trainer: Trainer) -> None:
    steps = trainer.steps()
    rows_of(trainer, steps, trainer.plan.total_steps)
    assert next(steps, None) is None


def test_dropout_is_a_function_of_seed_step_micro_batch_and_rank(trainer: Trainer) -> None:
    def drawn(step: int, micro_batch: int, rank: int = 0, seed: int = 3) -> float:
        trainer.world = World(rank, 2)
        trainer.config = trainer.config.model_copy(update={"seed": seed})
        trainer.seed_dropout(step, micro_batch)
        return float(torch.rand(()))

    assert drawn(5, 1) == drawn(5, 1)
    assert len({drawn(5, 1), drawn(6, 1), drawn(5, 0), drawn(5, 1, rank=1), drawn(5, 1, seed=4)}) == 5


def test_bad_steps_are_those_since_the_roll_back_and_those_that_it_did_away_with(trainer: Trainer) -> None:
    trainer.passed_over = [PassedOver(4, (5, 9), 12, 3, "its loss is nan", []), PassedOver(8, (9, 9), 12, 5, "so", [])]
    trainer.guard, trainer.step = GuardState(bad_steps=2), 8
    assert trainer.bad_steps == 2 + 3


def test_a_rank_gathers_the_cursors_of_all_lanes(trainer: Trainer) -> None:
    rows_of(trainer, trainer.steps(), 2)
    mine = dict(trainer.my_cursors())
    assert mine.keys() == set(range(trainer.plan.lanes))
    trainer.gather_cursors()
    assert dict(enumerate(trainer.cursors)) == mine
