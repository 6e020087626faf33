"""Which evaluation is the best, and when a run ends early: pure functions of the losses, which survive a checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.config import Evaluation
from maskloom.train.held_out import Evaluated, HeldOut, best_of

LOSSES = [6.0, 5.0, None, 4.5, 4.7, 4.5, 4.6]
"""Of steps 0, 10, ..., 60. That of step 20 was not finite."""


def evaluated(losses: list[float | None], total_steps: int = 100) -> HeldOut:
    held_out = HeldOut(64, 0.15, total_steps)
    for number, loss in enumerate(losses):
        held_out = held_out.with_loss(10 * number, loss)
    return held_out


def test_the_best_is_the_first_of_the_lowest_that_have_a_checkpoint() -> None:
    held_out = evaluated(LOSSES)
    assert held_out.best({10, 30, 50}) == Evaluated(30, 4.5)
    assert held_out.best({10, 50, 60}) == Evaluated(50, 4.5)
    assert held_out.best({10, 30, 50}, until=20) == Evaluated(10, 5.0)
    assert held_out.best({20, 35}) is None
    assert HeldOut(64, 0.15, 100).best({10}) is None


def test_a_loss_is_a_new_best_if_every_checkpoint_has_a_higher_one() -> None:
    held_out = evaluated(LOSSES)
    lower = [step for step in range(0, 70, 10) if held_out.is_lower(step, {10, 30, 40, 60})]
    assert lower == [30]  # the loss of step 50 equals that of step 30
    assert evaluated([6.0, 7.0]).is_lower(10, set()), "the beginning has no checkpoint"
    assert not evaluated([6.0, math.nan]).is_lower(10, set())


@pytest.mark.parametrize(
    ("min_delta", "best", "waited"),
    [
        (0.0, 30, 3),  # an equal loss is no lower one
        (0.5, 10, 5),  # 4.5 is not lower than 5.0 by more than that
        (0.4, 30, 3),
        (2.0, 0, 6),
    ],
)
def test_evaluations_since_the_lowest_are_counted(min_delta: float, best: int, waited: int) -> None:
    found, count = evaluated(LOSSES).waited(min_delta)
    assert found is not None
    assert (found.step, count) == (best, waited)


def test_a_run_whose_losses_fall_never_ends_early_and_one_that_stands_still_does() -> None:
    settings = Evaluation(every_steps=10, patience=3)
    assert not evaluated([6.0 - step / 10 for step in range(9)]).is_exhausted(settings)
    still = [5.0] * 4
    assert evaluated(still).is_exhausted(settings)
    assert not evaluated(still[1:]).is_exhausted(settings)
    assert not evaluated(still).is_exhausted(Evaluation(every_steps=10))
    assert evaluated([5.0, None, None, None]).is_exhausted(settings)  # that it diverged is said by others


def test_more_steps_give_new_patience() -> None:
    settings = Evaluation(every_steps=10, patience=3)
    held_out = evaluated([5.0] * 4)
    assert held_out.resumed(30, 100) == held_out
    longer = held_out.resumed(30, 200)
    assert not longer.is_exhausted(settings)
    assert longer.resumed(40, 200) == longer, "the same steps once more are no new ones"
    for step in (40, 50, 60):
        longer = longer.with_loss(step, 5.5)
    assert longer.is_exhausted(settings)


losses_of = st.lists(st.none() | st.floats(0, 20), max_size=9)


@given(losses_of, st.integers(0, 9))
def test_a_run_that_resumes_in_between_decides_alike(losses: list[float | None], at: int) -> None:
    resumed = HeldOut.from_json(json.loads(json.dumps(evaluated(losses[:at]).to_json()))) or evaluated([])
    for number, loss in enumerate(losses):  # a step that it has already changes nothing
        resumed = resumed.with_loss(10 * number, loss)
    assert resumed == evaluated(losses)


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluated": [[10, 5.0], [10, 4.0]]},
        {"evaluated": [[10, "5.0"]]},
        {"evaluated": [[10, math.inf]]},
        {"evaluated": [[-10, 5.0]]},
        {"evaluated": 7},
        {"evaluated": [[10]]},
        {"seq_len": None},
        {"mask_rate": "much"},
        {"other": 1},
    ],
)
def test_what_is_not_a_state_is_refused(changes: dict) -> None:
    with pytest.raises((TypeError, ValueError)):
        HeldOut.from_json({**evaluated(LOSSES).to_json(), **changes})


def written(run: Path, step: int, held_out: dict | None) -> None:
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "data.json").write_text("{" if held_out is None else json.dumps({"held_out": held_out}))


def test_the_best_of_a_run_is_that_of_its_newest_checkpoint(tmp_path: Path) -> None:
    assert best_of(tmp_path) is None
    written(tmp_path, 5, {})
    assert best_of(tmp_path) is None, "no evaluation"
    written(tmp_path, 30, evaluated(LOSSES[:4]).to_json())
    written(tmp_path, 60, evaluated(LOSSES[:6]).to_json())
    (tmp_path / "checkpoints" / "step-00000010.bak").mkdir()
    assert best_of(tmp_path) == Evaluated(30, 4.5)
    # Of its own step a checkpoint may know nothing, if a stop left the evaluation for later.
    (tmp_path / "metrics.jsonl").write_text('{"step": 60, "loss": 1.0}\n{"step": 60, "evaluation_loss": 4.25}\n')
    assert best_of(tmp_path) == Evaluated(60, 4.25)
    written(tmp_path, 70, None)
    assert best_of(tmp_path) == Evaluated(60, 4.25), "a damaged one says nothing"
