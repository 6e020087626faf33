"""`benchmarks/gpu_check.sh` without a GPU: every part that a CPU can do ends well and leaves what it found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import environment

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_check.sh"
PARTS = {
    "first": {
        "facts",
        "data",
        "probe",
        "tests-gpu",
        "doctor",
        "train-modernbert-fp32-zero1-eager",
        "train-bert-fp32-zero2-eager",
        "train-bert-bf16-zero3-compile",
    },
    "bench": {"facts", "data", "step-tiny"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gpu-check")


@pytest.mark.parametrize("what", PARTS)
def test_the_dry_run(what: str, folder: Path) -> None:
    variables = {
        "DEVICE": "cpu",
        "PY": sys.executable,
        "OUT": str(folder / "out"),
        "WORK": str(folder / "work"),
        "LIMIT_S": "600",  # other tests run beside it
    }
    done = subprocess.run(
        [str(SCRIPT), what], env=environment(**variables), capture_output=True, text=True, timeout=660, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    parts = dict(line.removeprefix("== ").split(": rc ") for line in done.stdout.splitlines() if line.startswith("== "))
    assert parts.keys() == PARTS[what], said
    assert {end.partition(",")[0] for end in parts.values()} == {"0"}

    results = json.loads((folder / "out" / "gpu-cpu.json").read_text())
    assert results["device"] == "cpu"
    found = results[what]
    assert {part["name"] for part in found["parts"]} == PARTS[what]
    assert {"date", "commit", "cpu", "versions"} <= set(found["stamp"])
    assert (folder / "out" / f"log-{what}.txt").stat().st_size > 0
    assert not (folder / "work" / "runs").exists()
    if what == "first":
        assert {"copy_bytes_per_s", "products_tflops", "attention", "chains_gb_per_s"} == set(found["probe"])
        for training in found["trainings"].values():
            assert training["faults"] == []
            assert training["difference_of_the_fork"] == {"first": 0.0, "largest": 0.0}  # on a CPU bit for bit
    else:
        steps = json.loads((folder / "out" / "step-cpu.json").read_text())
        assert steps["cases"]["tiny"]["systems"].keys() == {"maskloom-eager"}
