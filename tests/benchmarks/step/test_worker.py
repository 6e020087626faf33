"""A worker's turns and profile, in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
from step.cases import TINY, choose_systems
from step.jobs import Job, Training
from step.text import Text
from step.worker import Worker


@pytest.fixture(scope="module")
def worker(corpus_dir: Path, tokenizer_dir: Path) -> Worker:
    (system,) = choose_systems(["hf-sdpa"], "cpu")
    text = Text(str(corpus_dir), str(tokenizer_dir))
    worker = Worker(Job(system, Training(TINY, vocab_size=512), text, "cpu", threads=1))
    assert worker.ready()["warm_s"] > 0
    return worker


def test_a_turn_has_a_time_a_step_and_what_its_batches_held(worker: Worker) -> None:
    turn = worker.turn(steps=3)
    assert len(turn["step_s"]) == 3
    assert turn["facts"]["rows"] == 3 * TINY.step_rows
    assert turn["facts"]["slots"] == turn["facts"]["all_slots"] == 3 * TINY.step_rows * TINY.seq_len
    assert turn["graphs_compiled"] == 0
    assert 5.5 < turn["loss"] < 7.0  # ln 512 = 6.24, a few steps from random weights


def test_a_profile_has_every_part_of_a_step(worker: Worker) -> None:
    profile = worker.profile(steps=2)
    parts = profile["parts"]
    assert all(parts[part] > 0 for part in ("gemm", "attention", "elementwise", "head", "optimizer", "data"))
    assert sum(parts.values()) == pytest.approx(profile["step_s"], rel=0.05)
    assert 0 < profile["wait_s"] < profile["step_s"]


def test_a_loss_that_is_nan_ends_a_turn(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.trained, "mean_loss", lambda: float("nan"))
    with pytest.raises(RuntimeError, match="the loss of the measured steps is nan"):
        worker.turn(steps=1)
