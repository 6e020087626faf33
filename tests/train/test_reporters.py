"""Reporters: what they are told, that nothing they do ends a run, and W&B without a network."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from maskloom import config_sections
from maskloom.config import Logging
from maskloom.data.plan import PhasePlan
from maskloom.distributed import World
from maskloom.errors import UserError
from maskloom.train import reporters
from maskloom.train.about import About, Run
from maskloom.train.metrics import Metrics, Work
from maskloom.train.reporters import Reporter, Reporters
from maskloom.train.timing import TimeLeft
from tests.conftest import missing

RUN = Run(Path("runs/mine"), "0123456789abcdef", "mine", {"seed": 3})


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A reporter `notes` as a user's module adds it; what it was told."""
    monkeypatch.setattr(config_sections, "REPORTERS", set(config_sections.REPORTERS))
    monkeypatch.setattr(reporters, "REPORTERS", dict(reporters.REPORTERS))
    told: list[Any] = []

    def start(run: Run) -> reporters.Log:
        told.append(run.id)
        return lambda values, step: told.append((step, values))

    reporters.add(Reporter("notes", start, finish=lambda: told.append("end")))
    return told


def test_one_of_ones_own_is_told_every_line_by_its_tags(own: list[Any], tmp_path: Path) -> None:
    about = About(RUN, 2, {}, {}, Logging(reporters=("notes",)).reporters)
    left = TimeLeft((PhasePlan(steps=10, seq_len=32, lane_rows=1),), lanes=4)
    metrics = Metrics(tmp_path, 4, left, 400, World(), None, about)
    values = {"loss": 3.5, "loss_mean": 3.75, "accuracy": 0.5, "lr": 0.1, "grad_norm": math.inf}
    metrics.log_step(5, 500, values, Work(slots=122, computed_slots=128, flops=1))
    metrics.log_evaluation(5, {"evaluation_loss": 2.0, "evaluation_perplexity": 7.4, "evaluation_accuracy": 0.5})
    metrics.close()
    metrics.finish_reports()
    begin, (step, of_step), evaluation, end = own
    assert (begin, end) == (RUN.id, "end")
    assert step == 5
    assert of_step.items() >= {"train/loss": 3.75, "train/learning_rate": 0.1, "train_health/attempt": 2}.items()
    assert "train/grad_norm" not in of_step  # it is not finite
    assert "loss" not in {tag.rpartition("/")[2] for tag in of_step if not tag.startswith("train/")}
    assert evaluation == (5, {"eval/loss": 2.0, "eval/accuracy": 0.5})


def test_other_ranks_tell_nobody(own: list[Any], tmp_path: Path) -> None:
    about = About(RUN, 1, {}, {}, ("notes",))
    left = TimeLeft((PhasePlan(steps=10, seq_len=32, lane_rows=1),), lanes=4)
    metrics = Metrics(tmp_path, 0, left, 0, World(1, 2), None, about)
    metrics.log_evaluation(0, {"evaluation_loss": 2.0, "evaluation_perplexity": 7.4, "evaluation_accuracy": 0.5})
    metrics.close()
    metrics.finish_reports()
    assert own == []


def test_an_error_is_said_once_and_the_others_are_told(own: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    def broken(run: Run) -> reporters.Log:
        def log(values: dict[str, float], step: int) -> None:
            raise RuntimeError(f"lost the line of step {step}")

        return log

    def closed(run: Run) -> reporters.Log:
        raise OSError("no such host")

    reporters.add(Reporter("broken", broken))
    reporters.add(Reporter("closed", closed))
    all_of_them = Reporters(["broken", "closed", "notes"], RUN)
    for step in (1, 2):
        all_of_them.log({"train/loss": 1.0}, step)
    all_of_them.finish()
    assert own == [RUN.id, (1, {"train/loss": 1.0}), (2, {"train/loss": 1.0}), "end"]
    said = capsys.readouterr().err
    assert said.count("the reporter broken failed (RuntimeError: lost the line of step 1)") == 1
    assert said.count("the reporter closed failed (OSError: no such host)") == 1
    assert said.count("WARNING") == 2


def test_a_name_that_nobody_added_is_refused() -> None:
    with pytest.raises(ValueError, match=r"should be one of wandb; one of your own needs --import"):
        Logging(reporters=("wanda",))
    with pytest.raises(ValueError, match="wandb is there twice"):
        Logging(reporters=("wandb", "wandb"))


def test_a_name_is_taken_once(own: list[Any]) -> None:
    with pytest.raises(ValueError, match="cannot be named 'notes': it is taken"):
        reporters.add(Reporter("notes", lambda run: lambda values, step: None))


def test_a_missing_package_is_said_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name))
    reporters.check(["wandb"], World(1, 2))  # the first rank says it
    with pytest.raises(UserError, match=r"pip install 'maskloom\[wandb\]'"):
        reporters.check(["wandb"], World())


KEY = "0123456789" * 4


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """W&B that writes files alone, and ends with the test."""
    if importlib.util.find_spec("wandb") is None:
        missing("wandb")
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_API_KEY": KEY,
        "WANDB_PROJECT": "",
        "HOME": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["maskloom", "train", "run.yaml", "note=on-the-command-line"])
    import wandb

    yield wandb
    wandb.teardown()
    monkeypatch.delenv("WANDB_SERVICE", raising=False)


def records(file: Path) -> list[Any]:
    """What an offline run holds: LevelDB's log, in blocks of 32 KiB, of protobuf messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, parts, found = file.read_bytes(), 7, b"", []
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        size, kind = struct.unpack_from("<HB", content, place + 4)
        parts += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            found.append(Record.FromString(parts))
            parts = b""
    return found


def test_wandb_has_one_run_whose_steps_are_ours(offline: Any, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", "0123456789abcdef", "mine", {"seed": 3, "optimizer": {"lr": 0.5}})
    run.folder.mkdir()
    reporters.check(["wandb"], World())
    for steps in ([1, 2, 3], [3, 4]):  # a kill lost step 3
        attempt = Reporters(["wandb"], run)
        for step in steps:
            attempt.log({"train/loss": 1 / step, "train/grad_norm": math.nan}, step)
        attempt.finish()
        began_s = int(time.time())
        while int(time.time()) == began_s:  # W&B names the folder of an attempt by the second
            time.sleep(0.05)
    files = sorted((run.folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    found = [record for file in files for record in records(file)]
    begun = [record.run for record in found if record.WhichOneof("record_type") == "run"]
    assert {(each.run_id, each.project, each.display_name) for each in begun} == {(run.id, "maskloom", "mine")}
    settings = {item.key: json.loads(item.value_json) for item in begun[0].config.update}
    assert settings.items() >= run.config.items()
    metrics = [record.metric for record in found if record.WhichOneof("record_type") == "metric"]
    assert any(metric.glob_name == "*" and metric.step_metric == "step" for metric in metrics)
    history = [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.WhichOneof("record_type") == "history"
    ]
    assert [line["step"] for line in history] == [1, 2, 3, 3, 4]
    assert all(line["train/loss"] == pytest.approx(1 / line["step"]) for line in history)
    assert not any("train/grad_norm" in line for line in history)
    assert not any(record.WhichOneof("record_type") in ("output", "output_raw") for record in found)
    written = b"".join(file.read_bytes() for file in run.folder.rglob("*") if file.is_file())
    assert KEY.encode() not in written
    assert b"on-the-command-line" not in written


def test_without_a_key_wandb_is_refused_and_asks_nothing(offline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    reporters.check(["wandb"], World())
    assert "WANDB_SERVICE" not in os.environ  # nothing of it is left for ranks that start later
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", "/dev/null")
    with pytest.raises(UserError, match="finds no key for W&B: run `wandb login`, or set WANDB_API_KEY"):
        reporters.check(["wandb"], World())
