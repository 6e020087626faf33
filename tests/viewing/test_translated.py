"""Runs of earlier versions under the tags of today."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch.utils.tensorboard import SummaryWriter

from maskloom.runs import BOARD
from maskloom.tags import HELD_OUT
from maskloom.viewing.links import Links
from maskloom.viewing.translated import Translated, has_old_tags

LINES = [
    {"step": 0, "evaluation_loss": 9.0, "evaluation_accuracy": 0.125, "evaluation_perplexity": 8103.0},
    {"step": 10, "loss": 7.0, "loss_mean": 8.0, "lr": 0.5, "grad_norm": None, "step_time_s": 0.5, "data_wait_s": 0.0},
    {"step": 20, "loss": 5.0, "loss_mean": 6.0, "lr": 0.25, "grad_norm": 2.0, "step_time_s": 0.25, "data_wait_s": 0.0},
]


def write_lines(run: Path, lines: list[dict]) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> steps and values, of the event files directly in a folder."""
    found: dict[str, list[tuple[int, float]]] = {}
    for file in folder.glob("events.*"):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.tensor.float_val[0]))
    return found


def times(folder: Path) -> list[float]:
    (file,) = folder.glob("events.*")
    return [event.wall_time for event in EventFileLoader(str(file)).Load() if event.summary.value]


def test_metrics_become_todays_tags(tmp_path: Path) -> None:
    write_lines(tmp_path, LINES)
    Translated(tmp_path, tmp_path / "out").follow()
    found = points(tmp_path / "out")
    assert found["eval/loss"] == [(0, 9.0)]
    assert found["train/loss"] == [(10, 8.0), (20, 6.0)]  # loss_mean, not the loss of one step
    assert found["train/learning_rate"] == [(10, 0.5), (20, 0.25)]
    assert found["train/grad_norm"] == [(20, 2.0)]
    assert not any("perplexity" in tag for tag in found)
    assert points(tmp_path / "out" / HELD_OUT) == {"train/loss": [(0, 9.0)], "train/accuracy": [(0, 0.125)]}


def test_times_are_those_of_the_steps_up_to_the_last_change(tmp_path: Path) -> None:
    write_lines(tmp_path, LINES)
    Translated(tmp_path, tmp_path / "out").follow()
    end_s = (tmp_path / "metrics.jsonl").stat().st_mtime
    before = [10 * 0.5 + 10 * 0.25, 10 * 0.25, 0.0]
    assert times(tmp_path / "out") == pytest.approx([end_s - seconds for seconds in before])


def test_it_follows_a_run_and_forgets_what_a_resume_dropped(tmp_path: Path) -> None:
    write_lines(tmp_path, LINES[:2])
    translated = Translated(tmp_path, tmp_path / "out")
    translated.follow()
    write_lines(tmp_path, LINES)
    translated.follow()
    translated.follow()
    assert points(tmp_path / "out")["train/loss"] == [(10, 8.0), (20, 6.0)]
    write_lines(tmp_path, [LINES[0], {**LINES[1], "step": 5}])
    translated.follow()
    assert points(tmp_path / "out")["train/loss"] == [(5, 8.0)]


@pytest.mark.parametrize(
    ("tag", "is_old"), [("train/loss_mean", True), ("evaluation/loss", True), ("eval/loss", False)]
)
def test_old_runs_are_told_by_their_tags(tag: str, is_old: bool, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / BOARD).mkdir(parents=True)
    assert not has_old_tags(run / BOARD)
    with SummaryWriter(str(run / BOARD)) as writer:
        writer.add_scalar(tag, 1.0, 1)
    with SummaryWriter(str(run / BOARD), filename_suffix=".later") as writer:  # resumed by this version
        writer.add_scalar("train/loss", 1.0, 2)
    write_lines(run, LINES)
    assert has_old_tags(run / BOARD) == is_old
    with Links([run]) as links:
        links.refresh()
        assert (links.folder / "run").is_symlink() != is_old
