"""What runs leave in their folders, read without torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskloom.errors import UserError
from maskloom.runs import (
    Evaluation,
    evaluations,
    is_run,
    number,
    read_config,
    read_environment,
    runs_below,
    seconds_of,
)


def test_runs_are_found_at_any_depth_but_not_in_runs(tmp_path: Path) -> None:
    for name in ("b", "a/deep", "a/deep/tensorboard/inner", ".hidden/run", "empty", "1/2/3/4/5/too_deep"):
        (tmp_path / name).mkdir(parents=True)
        if name != "empty":
            (tmp_path / name / "metrics.jsonl").touch()
    assert list(runs_below(tmp_path)) == [tmp_path / "a" / "deep", tmp_path / "b"]
    assert not is_run(tmp_path / "empty")
    assert list(runs_below(tmp_path / "gone")) == []


def test_only_finite_numbers_count() -> None:
    line = {"lr": 1, "loss": None, "text": "1", "flag": True, "grad_norm": float("inf")}
    assert [number(line, name) for name in (*line, "missing")] == [1.0, None, None, None, None, None]


def test_an_evaluation_that_was_made_again_counts_once() -> None:
    lines = [
        {"step": 20, "evaluation_loss": 3.0, "evaluation_accuracy": 0.5},
        {"step": 10, "evaluation_loss": 4.0},
        {"step": 20, "evaluation_loss": 2.0, "evaluation_accuracy": None},
        {"step": 30, "evaluation_loss": None},
    ]
    assert evaluations(lines) == [Evaluation(10, 4.0, None), Evaluation(20, 2.0, None)]


def test_lines_cover_the_seconds_of_the_steps_since_the_line_before() -> None:
    lines = [
        {"step": 0, "evaluation_loss": 9.0},
        {"step": 10, "step_time_s": 0.5},
        {"step": 15, "evaluation_loss": 8.0},
        {"step": 20, "step_time_s": 0.25},
    ]
    assert seconds_of(lines) == [0.0, 5.0, 0.0, 2.5]


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run at .* \(no config\.yaml\)"):
        read_config(tmp_path)
    (tmp_path / "config.yaml").write_text("- a list\n")
    with pytest.raises(UserError, match="it holds no keys"):
        read_config(tmp_path)
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is damaged"):
        read_config(tmp_path)
    assert read_environment(tmp_path) == {}
    (tmp_path / "environment.json").write_text("{not JSON")
    assert read_environment(tmp_path) == {}
