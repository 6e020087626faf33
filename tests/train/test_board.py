"""The event files: every point once, the second line of a card, texts and settings."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from tensorboard.summary.writer import event_file_writer

from maskloom.train.board import CHARTS, FIRST, SETTINGS, Board

VALUES = {name: "x" if kind.endswith("STRING") else 2 for name, kind in SETTINGS.items()}


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), {"scalars": 0, "tensors": 0}).Reload()


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


def attempt(run: Path, begin: int, end: int, title: str = "") -> None:
    """The steps behind `begin` up to `end`, with an evaluation after each second one."""
    board = Board(run, title, VALUES if title else {})
    board.begin_at(begin, {"run/config": f"from {begin}"})
    for step in range(begin + 1, end + 1):
        board.log({"train/loss": step / 2, "train/accuracy": 0.25}, step)
        if step % 2 == 0:
            board.log({"eval/loss": step / 4, "eval/accuracy": 0.125, "eval/probe_accuracy": 0.5}, step)
    board.close()


def test_steps_that_are_done_again_are_there_once(tmp_path: Path) -> None:
    attempt(tmp_path, 0, 7)
    attempt(tmp_path, 4, 9)  # a kill that lost three steps
    attempt(tmp_path, 9, 10)  # a stop that lost none
    folder = tmp_path / "tensorboard"
    assert points(folder, "train/loss") == [(step, step / 2) for step in range(1, 11)]
    assert points(folder, "eval/loss") == [(step, step / 4) for step in range(2, 11, 2)]
    assert [event.step for event in read(folder).Tensors("run/config")] == [0, 4, 9]


def test_held_out_values_are_the_second_line_of_the_cards_of_training(tmp_path: Path) -> None:
    attempt(tmp_path, 0, 6)
    attempt(tmp_path, 3, 6)
    held_out = tmp_path / "tensorboard" / "held-out"
    assert read(held_out).Tags()["scalars"] == ["train/loss", "train/accuracy"]
    assert points(held_out, "train/loss") == [(2, 0.5), (4, 1.0), (6, 1.5)]
    assert points(held_out, "train/accuracy") == [(2, 0.125), (4, 0.125), (6, 0.125)]


def test_a_run_without_evaluations_has_no_second_line(tmp_path: Path) -> None:
    attempt(tmp_path, 0, 1)
    assert [entry.is_file() for entry in (tmp_path / "tensorboard").iterdir()] == [True]


def test_settings_are_a_row_of_this_run_and_no_run_of_their_own(tmp_path: Path) -> None:
    attempt(tmp_path, 0, 2, title="runs/mine")
    content = read(tmp_path / "tensorboard").PluginTagToContent("hparams")
    started = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    assert started.group_name == "runs/mine"
    assert set(started.hparams) == set(SETTINGS)
    experiment = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG])
    assert [info.name for info in experiment.hparam_infos if info.differs] == list(FIRST)
    assert experiment.metric_infos[0].name.tag == "eval/loss"
    assert sorted(entry.name for entry in (tmp_path / "tensorboard").iterdir())[-1] == "held-out"


def test_the_charts_name_tags_that_are_there(tmp_path: Path) -> None:
    attempt(tmp_path, 0, 2)
    folder = tmp_path / "tensorboard"
    (layout,) = read(folder).Tensors("custom_scalars__config__")
    for charts in CHARTS.values():
        for title, (_, patterns) in charts.items():
            assert title.encode() in layout.tensor_proto.string_val[0]
            assert all(pattern.startswith("^") and pattern.endswith("$") for pattern in patterns)


def test_a_folder_that_is_gone_is_said_once_and_leaves_no_thread(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def writers() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if type(thread).__module__ == event_file_writer.__name__]

    before = writers()
    board = Board(tmp_path)
    board.begin_at(0, {})
    board.log({"eval/loss": 2.0}, 1)
    assert len(writers()) == len(before) + 2
    shutil.rmtree(tmp_path / "tensorboard")
    for step in (2, 3):
        board.log({"train/loss": 2.0}, step)
    assert writers() == before
    assert capsys.readouterr().err.count("TensorBoard can no longer be written") == 1


def test_tracebacks_of_the_writers_alone_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: told.append(str(arguments.exc_value)))
    for _ in range(2):
        Board(tmp_path)
    hook = threading.excepthook
    Board(tmp_path)
    assert threading.excepthook is hook  # one is enough

    def fail() -> None:
        raise ValueError("of another thread")

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    assert told == ["of another thread"]
