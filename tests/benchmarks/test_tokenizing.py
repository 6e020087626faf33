"""The benchmark of tokenising runs, and checks that both sides give the same ids."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from maskloom.tokenizers.training import trainable_kinds

from .scripts import BENCHMARKS


def test_every_kind_is_measured(tmp_path: Path) -> None:
    """In a process of its own: it sets the number of threads."""
    command = [sys.executable, str(BENCHMARKS / "tokenizing.py"), "--out", str(tmp_path / "out" / "found.json")]
    done = subprocess.run(
        [*command, "--chars", "60000", "--rounds", "1"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / "out" / "found.json").read_text())
    assert {row["kind"].partition(",")[0] for row in report["results"]} == set(trainable_kinds())
    assert all(row["tokens"] > 0 and row["times_as_fast"] > 0 for row in report["results"])
    assert done.stdout.count("\n") == len(report["results"]) + 2
