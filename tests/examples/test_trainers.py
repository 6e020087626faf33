"""examples/plain_loop.py and examples/hf_trainer.py: they run as a reader would run them, and show what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .imports import EXAMPLES


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain_loop.py", "stopped and resumed: the same 20 losses"),
        ("hf_trainer.py", "stopped and resumed: the same batches and losses"),
    ],
)
def test_examples_run_without_arguments(name: str, shown: str, tmp_path: Path) -> None:
    """The examples compare what a run that stopped gives with one that did not, and fail if it differs."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(EXAMPLES / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == shown
    assert not list(tmp_path.glob("tmp*/shards")), "the corpus was left behind"
