"""One tiny trained run for the commands that need one, and `maskloom` in this process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from maskloom.cli import main

Command = Callable[..., str]


@pytest.fixture
def succeeds(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `maskloom ...` here and return what it prints; it must succeed."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return captured.out

    return run


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `maskloom COMMAND ...` here and return its message; it must be refused as a user's fault."""

    def run(command: str, *arguments: object) -> str:
        capsys.readouterr()
        code = main([command, *(str(argument) for argument in arguments)])
        message = capsys.readouterr().err
        assert code == 1
        assert message.startswith(f"maskloom {command}: ")
        assert message.count(f"maskloom {command}: ") == 1
        assert "Traceback" not in message
        return message

    return run


@pytest.fixture(scope="session")
def trained_run(corpus_dir: Path, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 12 steps with checkpoints of steps 8 and 12; tests must not change it."""
    folder = tmp_path_factory.mktemp("trained")
    tree = {
        "run_dir": str(folder / "run"),
        "seed": 3,
        "tokenizer": str(tokenizer_dir),
        "data": {"train": str(corpus_dir), "lanes": 6, "workers": 0},
        "model": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
        "optimizer": {"lr": 5e-3, "warmup_steps": 2},
        "phases": [{"steps": 12, "seq_len": 32, "global_batch_rows": 12, "micro_batch_rows": 6}],
        "evaluation": {"every_steps": 12, "seq_len": 64},
        "checkpoint": {"every_steps": 4},
        "logging": {"every_steps": 1},
    }
    config = folder / "run.yaml"
    config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    command = [sys.executable, "-m", "maskloom.train", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    status = json.loads((folder / "run" / "status.json").read_text())
    assert (status["state"], status["step"]) == ("done", 12)
    return folder / "run"
