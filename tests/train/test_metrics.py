"""metrics.jsonl and TensorBoard: every step once, whatever a kill left behind."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maskloom.data.plan import PhasePlan
from maskloom.distributed import World
from maskloom.runs import read_metrics
from maskloom.train import metrics as metrics_module
from maskloom.train import timing
from maskloom.train.metrics import Metrics, Work, memory_peaks
from maskloom.train.timing import TimeLeft
from tests.conftest import files_of_at_most

VALUES = {"loss": 3.5, "loss_mean": 3.75, "lr": 1e-3, "grad_norm": 0.7, "accuracy": 0.25}
# A step of 4 rows of 32, of which 6 slots are padding.
WORK = Work(slots=122, computed_slots=128, flops=3 * 10**9)
PEAK_FLOPS = 12e9
EVALUATION = {"evaluation_loss": 2.0, "evaluation_perplexity": math.exp(2.0), "evaluation_accuracy": 0.5}


def left() -> TimeLeft:
    """Of a run of ten steps of 4 rows of 32."""
    return TimeLeft((PhasePlan(steps=10, seq_len=32, lane_rows=1),), lanes=4)


def log(run: Path, first: int, last: int, tokens_a_step: int = 100, world: World | None = None) -> None:
    """Log the steps from `first` on to before `last`, as a run that stood before `first`."""
    metrics = Metrics(run, first - 1, left(), (first - 1) * tokens_a_step, world or World(), PEAK_FLOPS)
    for step in range(first, last):
        metrics.waited(0.0, 4)
        metrics.log_step(step, step * tokens_a_step, VALUES, WORK)
    metrics.close()


def test_a_line_holds_what_is_known_of_a_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log(tmp_path, 1, 3)
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        assert line.items() >= VALUES.items()
        assert line["tokens_seen"] == 100 * line["step"]
        # Both rates are over the same seconds: 100 tokens and 4 rows a step.
        assert line["tokens_per_s"] > 0
        assert line["tokens_per_s"] / line["sequences_per_s"] == pytest.approx(100 / 4)
        assert line["tokens_per_s"] * line["step_time_s"] == pytest.approx(100)
    assert "step 1/10 | loss 3.7500 | accuracy 25.0% | lr 1.00e-03 | grad norm 0.70 |" in capsys.readouterr().out


def test_a_norm_that_is_not_finite_is_null(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, 0, left(), 0, World(), PEAK_FLOPS)
    metrics.log_step(1, 100, {**VALUES, "grad_norm": float("inf")}, WORK)
    metrics.close()
    assert '"grad_norm": null' in (tmp_path / "metrics.jsonl").read_text()


def test_rates_cover_the_steps_since_the_line_before(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, 0, left(), 0, World(), PEAK_FLOPS)
    for _ in range(5):
        metrics.waited(0.0, 4)
    metrics.log_step(5, 500, VALUES, WORK)
    metrics.close()
    (line,) = read_metrics(tmp_path)
    assert line["tokens_per_s"] * line["step_time_s"] == pytest.approx(100)
    assert line["tokens_per_s"] / line["sequences_per_s"] == pytest.approx(500 / 20)


def test_the_probe_stands_in_the_line_of_its_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = Metrics(tmp_path, 0, left(), 0, World(), PEAK_FLOPS)
    metrics.log_evaluation(0, EVALUATION)
    metrics.log_evaluation(3, {**EVALUATION, "evaluation_probe_accuracy": 0.625})
    metrics.close()
    said = "held-out loss 2.0000 | perplexity 7.4 | accuracy 50.0%"
    assert capsys.readouterr().out.splitlines() == [f"step 0 | {said}", f"step 3 | {said} | probe 62.5%"]
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("eval/loss")] == [0, 3]
    assert [(event.step, event.value) for event in board.Scalars("eval/probe_accuracy")] == [(3, 0.625)]


class Clock:
    """Stands still until it is moved."""

    now_s = 50.0

    def perf_counter(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (metrics_module, timing):
        monkeypatch.setattr(module, "time", clock)
    return clock


def test_what_was_computed_stands_beside_what_it_was_for(tmp_path: Path, clock: Clock) -> None:
    """Of two ranks: a rank's FLOP/s, and the share of what both devices could have done."""
    metrics = Metrics(tmp_path, 0, left(), 0, World(0, 2), PEAK_FLOPS)
    clock.now_s += 2.0
    metrics.log_step(5, 500, VALUES, WORK)
    metrics.close()
    (line,) = read_metrics(tmp_path)
    seconds = 5 * line["step_time_s"]
    assert line["packing_density"] == 122 / 128
    assert line["padded_tokens_per_s"] * seconds == pytest.approx(128)
    assert line["tflops_per_s"] * seconds == pytest.approx(3e9 / 2 / 1e12)
    assert line["mfu"] * seconds == pytest.approx(3e9 / 12e9)


def take_steps(metrics: Metrics, clock: Clock, steps: range, seconds: float) -> None:
    """Steps of so many seconds, a quarter of which they wait for data; each is logged."""
    for step in steps:
        metrics.waited(seconds / 4, 4)
        clock.now_s += seconds
        metrics.time_left.stepped(step)
        metrics.log_step(step, 100 * step, VALUES, WORK)


def test_the_line_that_people_read(tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """A resume at step 4 of 10, whose first step takes five minutes and the others half a minute."""
    metrics = Metrics(tmp_path, 4, left(), 400, World(), PEAK_FLOPS)
    take_steps(metrics, clock, range(5, 6), 300.0)
    take_steps(metrics, clock, range(6, 8), 30.0)
    clock.now_s += 10.0
    metrics.paused(10.0)  # an evaluation after three steps
    take_steps(metrics, clock, range(8, 9), 30.0)
    metrics.close()
    said = "loss 3.7500 | accuracy 25.0% | lr 1.00e-03 | grad norm 0.70 |"
    assert capsys.readouterr().out.splitlines() == [
        f"step 5/10 | {said} 0 tokens/s | data wait 25% | ? left",
        f"step 6/10 | {said} 3 tokens/s | data wait 25% | 2:00 left",
        f"step 7/10 | {said} 3 tokens/s | data wait 25% | 1:30 left",
        f"step 8/10 | {said} 3 tokens/s | data wait 25% | 1:05 left",  # 2 * (30 + 10 / 4)
    ]
    lines = read_metrics(tmp_path)
    assert [line["step_time_s"] for line in lines] == [300.0, 30.0, 30.0, 30.0]
    assert [line["mfu"] for line in lines] == pytest.approx([3e9 / 12e9 / seconds for seconds in (300, 30, 30, 30)])


def test_a_roll_back_is_not_a_step(tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = Metrics(tmp_path, 0, left(), 0, World(), PEAK_FLOPS)
    take_steps(metrics, clock, range(1, 7), 20.0)
    clock.now_s += 1000.0
    metrics.begin_at(6, 600)
    take_steps(metrics, clock, range(7, 8), 20.0)
    metrics.begin_at(4, 400)
    take_steps(metrics, clock, range(5, 6), 20.0)
    metrics.close()
    assert [line.split("| ")[-1] for line in capsys.readouterr().out.splitlines()[-2:]] == ["1:00 left", "1:40 left"]


def test_without_a_peak_there_is_no_mfu(tmp_path: Path, clock: Clock) -> None:
    metrics = Metrics(tmp_path, 0, left(), 0, World(), None)
    take_steps(metrics, clock, range(1, 3), 1.0)
    metrics.close()
    for line in read_metrics(tmp_path):
        assert "mfu" not in line
        assert line["tflops_per_s"] == pytest.approx(3e-3)
    assert "utilization/mfu" not in EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tags()["scalars"]


@pytest.mark.parametrize(("seconds", "is_shown"), [(0.25, True), (0.2, False), (0.03, False)])
def test_an_mfu_above_1_is_not_shown(
    seconds: float, is_shown: bool, tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """3 GFLOP a step: 12 GFLOP/s, which is the peak, in a quarter of a second."""
    metrics = Metrics(tmp_path, 0, left(), 0, World(), PEAK_FLOPS)
    take_steps(metrics, clock, range(1, 4), seconds)
    metrics.close()
    assert all(("mfu" in line) == is_shown for line in read_metrics(tmp_path))
    assert ("utilization/mfu" in EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tags()["scalars"]) == is_shown
    warnings = [line for line in capsys.readouterr().err.splitlines() if "logging.peak_tflops" in line]
    assert len(warnings) == (0 if is_shown else 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc, to compare with")
def test_the_memory_peak_of_a_cpu_is_the_largest_resident_set() -> None:
    peak = memory_peaks(torch.device("cpu"))["memory_peak_bytes"]
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    assert peak == pytest.approx(int(status["VmHWM"].split()[0]) * 1024, rel=0.01)


def test_lines_beyond_the_resume_are_dropped(tmp_path: Path) -> None:
    log(tmp_path, 1, 8)
    log(tmp_path, 5, 9)
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(1, 9))
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("train/loss")] == list(range(1, 9))


def test_a_line_that_a_kill_cut_off_is_left_out(tmp_path: Path) -> None:
    log(tmp_path, 1, 4)
    file = tmp_path / "metrics.jsonl"
    whole = file.read_text()
    for cut in range(1, len(whole.splitlines()[-1]) + 1):
        file.write_text(whole[: -1 - cut])
        assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2], f"{cut} characters cut off"
    log(tmp_path, 3, 5)
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2, 3, 4]


def test_evaluation_lines_stand_beside_the_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = Metrics(tmp_path, 0, left(), 0, World(), PEAK_FLOPS)
    metrics.log_evaluation(2, EVALUATION)
    metrics.close()
    assert read_metrics(tmp_path) == [{"step": 2, **EVALUATION}]
    assert "step 2 | held-out loss 2.0000 | perplexity 7.4 | accuracy 50.0%" in capsys.readouterr().out
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert board.Tags()["scalars"] == ["eval/loss", "eval/accuracy"]


def test_only_the_first_rank_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log(tmp_path, 1, 3, world=World(1, 2))
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""


def test_a_run_without_metrics_has_no_lines(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []


def test_a_dead_tensorboard_folder_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = Metrics(tmp_path, 0, left(), 0, World(), PEAK_FLOPS)
    metrics.log_step(1, 100, VALUES, WORK)
    shutil.rmtree(tmp_path / "tensorboard")
    for step in (2, 3):
        metrics.log_step(step, 100 * step, VALUES, WORK)
    metrics.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]
    assert capsys.readouterr().err.count("TensorBoard can no longer be written") == 1


def test_a_tensorboard_folder_that_cannot_be_made_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    log(tmp_path, 1, 3)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    assert "TensorBoard can no longer be written" in capsys.readouterr().err


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")  # would be a traceback
def test_a_disk_that_is_full_costs_tensorboard_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = Metrics(tmp_path, 0, left(), 0, World(), PEAK_FLOPS)
    metrics.log_step(1, 100, VALUES, WORK)
    with files_of_at_most(1):
        for step in (2, 3, 4):
            metrics.log_step(step, 100 * step, VALUES, WORK)
    metrics.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]
    assert capsys.readouterr().err.count("TensorBoard can no longer be written") == 1


def test_lines_that_cannot_be_written_are_written_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = Metrics(tmp_path, 0, left(), 0, World(), PEAK_FLOPS)
    metrics.log_step(1, 100, VALUES, WORK)
    (tmp_path / "metrics.jsonl").rename(tmp_path / "aside")
    (tmp_path / "metrics.jsonl").mkdir()
    for step in (2, 3):
        metrics.log_step(step, 100 * step, VALUES, WORK)
    (tmp_path / "metrics.jsonl").rmdir()
    (tmp_path / "aside").rename(tmp_path / "metrics.jsonl")
    metrics.log_step(4, 400, VALUES, WORK)
    metrics.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]
    assert capsys.readouterr().err.count("its lines are kept") == 1
