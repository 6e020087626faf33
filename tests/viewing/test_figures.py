"""The figures of runs, from what their folders hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskloom.runs import Evaluation
from maskloom.status import Status
from maskloom.viewing.figures import evaluated_together, figures_of, logged_together

LINES = [
    {"step": 0, "evaluation_loss": 9.0, "evaluation_accuracy": 0.0},
    {"step": 10, "loss_mean": 8.0, "tokens_per_s": 100.0, "step_time_s": 0.5, "bad_steps": 0, "tokens_seen": 900},
    {"step": 20, "loss_mean": None, "tokens_per_s": 900.0, "step_time_s": 0.25, "bad_steps": 3, "tokens_seen": 1800},
    {"step": 20, "evaluation_loss": 5.0, "evaluation_accuracy": 0.25},
    {"step": 30, "loss_mean": 6.0, "tokens_per_s": 300.0, "step_time_s": 0.25, "bad_steps": 3, "tokens_seen": 2700},
    {"step": 30, "evaluation_loss": 5.5, "evaluation_accuracy": 0.5},
]


def make_run(run: Path, lines: list[dict], status: Status | None = None) -> Path:
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if status:
        status.write(run)
    return run


def test_figures_are_those_of_the_lines(tmp_path: Path) -> None:
    found = figures_of(make_run(tmp_path / "run", LINES, Status("running", 35, 100, 2)))
    assert (found.state, found.step, found.total_steps, found.attempts) == ("running", 35, 100, 2)
    assert (found.tokens_seen, found.bad_steps, found.rollbacks) == (2700, 3, None)
    assert found.last == Evaluation(30, 5.5, 0.5)
    assert found.best == Evaluation(20, 5.0, 0.25)
    assert found.tokens_per_s == 300.0
    assert found.training_s == 10 * 0.5 + 10 * 0.25 + 10 * 0.25
    assert found.training_losses == {10: 8.0, 30: 6.0}, "the one that was not finite is left out"
    json.dumps(found.to_json(), allow_nan=False)


def test_a_run_that_has_just_begun_has_no_figures(tmp_path: Path) -> None:
    found = figures_of(make_run(tmp_path / "run", []))
    assert (found.step, found.last, found.best, found.tokens_per_s, found.training_s) == (0, None, None, None, None)


def test_losses_of_the_same_steps_are_compared_with_the_first(tmp_path: Path) -> None:
    other = [{**line, "evaluation_loss": 4.0} for line in LINES if "evaluation_loss" in line and line["step"] != 0]
    runs = [figures_of(make_run(tmp_path / "one", LINES)), figures_of(make_run(tmp_path / "two", other))]
    together = evaluated_together(runs)
    assert [(same.step, same.losses) for same in together] == [(20, (5.0, 4.0)), (30, (5.5, 4.0))]
    assert together[0].differences == pytest.approx((0.0, -1.0))
    assert logged_together(runs) == []
