"""`benchmarks/gpu_check.sh` and its parts: what fails is said and keeps no other part from running."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.waiting import wait_for_end

from .scripts import BENCHMARKS, load

SCRIPTS = ("gpu_check.sh", "gpu_wheels.sh")
CHECK, TRAINING, TESTS = load("gpu/check"), load("gpu/training"), load("gpu/tests")
WORDS = "import sys; print('word ' * 3); sys.exit({code})"


@pytest.fixture
def check(tmp_path: Path) -> Any:
    return CHECK.Check("first", tmp_path, tmp_path, 60.0)


def part(name: str, code: str, limit_s: float = 60.0) -> Any:
    return CHECK.Part(name, ["-c", code], limit_s)


def test_the_scripts_are_clean() -> None:
    files = [str(BENCHMARKS / name) for name in SCRIPTS]
    if shutil.which("shellcheck"):
        checked = subprocess.run(["shellcheck", *files], capture_output=True, text=True, timeout=60, check=False)
        assert not checked.returncode, checked.stdout
    for file in files:
        assert os.access(file, os.X_OK)
        subprocess.run(["bash", "-n", file], check=True, timeout=60)


def test_a_part_that_fails_shows_its_last_words_and_the_next_one_runs(
    check: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    check.run_together([part("bad", WORDS.format(code=3)), part("good", WORDS.format(code=0))], jobs=1)
    assert [(each["name"], each["rc"]) for each in check.ended] == [("bad", 3), ("good", 0)]
    first, words, second = capsys.readouterr().out.splitlines()
    assert first.startswith("== bad: rc 3, ")
    assert words.strip() == "word word word"
    assert second.startswith("== good: rc 0, ")
    log = Path(check.log.name).read_text()
    assert log.count("word word word") == 2


def test_a_part_beyond_its_time_is_killed_with_all_that_it_started(
    check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CHECK, "LEAST_S", 0.0)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    starts = (
        "import pathlib, subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {deaf!r}])\n"
        f"pathlib.Path({str(tmp_path / 'pids')!r}).write_text(str(child.pid))\n"
        "time.sleep(600)"
    )
    assert check.run(part("slow", starts, limit_s=3.0)) == CHECK.TIMED_OUT
    wait_for_end(int((tmp_path / "pids").read_text()))


def test_what_no_time_is_left_for_has_failed(check: Any) -> None:
    check.limit_s = CHECK.LEAST_S - 1
    assert check.run(part("late", WORDS.format(code=0))) == CHECK.TIMED_OUT
    assert check.ended == [{"name": "late", "rc": CHECK.TIMED_OUT, "seconds": 0.0}]


def test_results_of_both_calls_stand_side_by_side(tmp_path: Path) -> None:
    for what in ("first", "bench", "first"):
        file = CHECK.save({"device": "cpu", what: {"parts": []}}, tmp_path)
    assert json.loads(file.read_text()) == {"device": "cpu", "first": {"parts": []}, "bench": {"parts": []}}


def test_a_gpu_has_every_precision_stage_and_way_to_compute() -> None:
    every = {("bert", p, z, k) for p in ("bf16", "fp16") for z in (1, 2, 3) for k in ("eager", "compile")}
    trainings = CHECK.trainings("cuda")
    assert {*trainings} == every | {("modernbert", "bf16", stage, "compile") for stage in (1, 3)}
    assert len({*trainings}) == len(trainings)
    assert {architecture for architecture, *_ in CHECK.trainings("cpu")} == {*TRAINING.ARCHITECTURES}


@pytest.fixture
def losses() -> dict[str, dict[int, float]]:
    """Of a training on a CPU that went well."""
    start = {step: 7.0 - step / 10 for step in range(1, 7)}
    return {"start": start, "fork": {step: start[step] for step in (4, 5, 6)}, "resume": {7: 6.3, 8: 6.2}}


def test_a_training_that_went_well_has_no_faults(losses: dict[str, dict[int, float]]) -> None:
    assert TRAINING.faults("cpu", losses, 6) == []


@pytest.mark.parametrize(
    ("start", "step", "loss", "fault"),
    [
        ("fork", 5, 6.5 + 1e-7, "the fork's losses are not those"),
        ("fork", 3, 6.7, "fork did the steps"),  # more than it was to do
        ("resume", 7, float("nan"), "not finite"),
        ("resume", 7, 7.1, "lost what was learned"),
        ("start", 1, 5.0, "the loss does not fall"),
    ],
)
def test_a_training_that_went_wrong_is_found_out(
    losses: dict[str, dict[int, float]], start: str, step: int, loss: float, fault: str
) -> None:
    losses[start][step] = loss
    assert any(fault in found for found in TRAINING.faults("cpu", losses, 6))


def test_on_a_gpu_a_fork_may_differ_by_rounding_and_not_by_another_batch() -> None:
    start = {step: 10.0 - step / 20 for step in range(1, 51)}
    resume = dict.fromkeys(range(51, 61), 7.0)
    for apart, is_well in ((1e-3, True), (0.04, False)):
        fork = {step: start[step] + apart for step in range(26, 51)}
        found = TRAINING.faults("cuda", {"start": start, "fork": fork, "resume": resume}, 50)
        assert (not found) is is_well


@pytest.mark.parametrize(
    ("command", "variables", "code", "said"),
    [
        (["gpu_check.sh", "--help"], {}, 0, "LIMIT_S "),
        (["gpu_check.sh", "fast"], {}, 2, "data|first|bench, not fast"),
        (["gpu_check.sh", "first", "bench"], {}, 2, "bench is one too many"),
        (["gpu_check.sh", "first"], {"WHEELS": "nowhere"}, 2, "WHEELS=nowhere has no wheels"),
        (["gpu_check.sh", "first"], {"JOBS": "0", "DEVICE": "cpu"}, 2, "JOBS=0"),
        (["gpu_wheels.sh", "--help"], {}, 0, "FUSED_PY "),
        (["gpu_wheels.sh", "--fused"], {}, 2, "--fused is an option"),
        (["gpu_wheels.sh", "wheels", "has", "more"], {}, 2, "more is one too many"),
        (["gpu_wheels.sh", "wheels", "nowhere"], {}, 2, "there is no file nowhere"),
        (["gpu_wheels.sh", "wheels"], {"FUSED_PY": "/bin/false"}, 2, "FUSED_PY /bin/false has no CUDA build of torch"),
        (["gpu_wheels.sh", "wheels", "/dev/null"], {"FUSED": "0"}, 1, "HAS lists no torch"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_asked_wrongly_is_said_before_anything_is_done(
    command: list[str], variables: dict[str, str], code: int, said: str, tmp_path: Path
) -> None:
    places = {"PY": sys.executable, "OUT": str(tmp_path / "out"), "WORK": str(tmp_path / "work")}
    done = subprocess.run(
        [str(BENCHMARKS / command[0]), *command[1:]],
        env={**os.environ, **places, **variables},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("**/*.whl"))


def test_without_a_gpu_nothing_is_tried_after_that_is_known(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine whose torch can use no GPU")
    places = {"PY": sys.executable, "OUT": str(tmp_path / "out"), "WORK": str(tmp_path / "work"), "DEVICE": "cuda"}
    command = [str(BENCHMARKS / "gpu_check.sh"), "first"]
    done = subprocess.run(
        command, env={**os.environ, **places, "WHEELS": ""}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert [line.split(",")[0] for line in done.stdout.splitlines() if line.startswith("==")] == ["== facts: rc 3"]
    assert "torch can use no GPU here: see docs/install.md" in done.stdout


@pytest.mark.parametrize(("skips", "count"), [(True, 0), (False, 1)])
def test_tests_that_were_skipped_did_not_run(skips: bool, count: int, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(f"import pytest\ndef test_it():\n    {skips} and pytest.skip('no GPU')\n")
    report = tmp_path / "report.xml"
    own = [sys.executable, str(BENCHMARKS / "gpu/tests.py"), "--device"]
    for device in ("cpu", "cuda"):
        command = [*own, device, "--junitxml", str(report), str(tmp_path / "test_it.py")]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == int(device == "cuda" and skips), done.stdout
    assert TESTS.ran(str(report)) == count
