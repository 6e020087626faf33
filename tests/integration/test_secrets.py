"""A run whose data is opened by a signed URL: the signature is in no file of the run and in no line of its output."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from maskloom.cli import main
from tests.fault_server import FaultServer

SECRET = "S3CRET-S3CRET"


def test_a_signature_and_a_token_are_nowhere(
    corpus_dir: Path,
    run_config: dict,
    write_config: Callable[..., Path],
    maskloom: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = Path(run_config["run_dir"])
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    said = ""
    with FaultServer(corpus_dir) as server:
        url = f"{server.url}/?signature={SECRET}"
        run_config |= {"data": {**run_config["data"], "train": url}, "checkpoint": {"every_steps": 4}}
        run_config["phases"][0]["steps"] = 4
        run_config["evaluation"] = {"every_steps": 4, "seq_len": 32}
        config = write_config(run_config)
        for steps in ("4", "5"):  # begins, and resumes
            output = maskloom("train", config, f"phases.0.steps={steps}")
            assert output.returncode == 0, output.stderr
            said += output.stdout + output.stderr
        assert main(["train", str(config), "phases.0.steps=5", "--show-deepspeed"]) == 0
        assert main(["eval", str(run), f"data.train={url}"]) == 0
        assert main(["eval", str(run)]) == 1
        assert all(SECRET in path for path, _ in server.requests)
    printed = capsys.readouterr()
    assert '"train_micro_batch_size_per_gpu"' in printed.out
    assert "the query of this URL was not saved with the run" in printed.err
    output = maskloom("train", config, "phases.0.steps=6", "data.storage.attempts=1")
    assert output.returncode == 1
    assert server.url in output.stderr  # which is gone
    assert SECRET not in said + printed.out + printed.err + output.stdout + output.stderr
    files = [file for folder in (run, tmp_path / "cache") for file in folder.rglob("*") if file.is_file()]
    assert {"config.yaml", "environment.json", "status.json", "metrics.jsonl"} <= {file.name for file in files}
    assert any(file.suffix == ".pt" for file in files)
    assert not [file for file in files if SECRET.encode() in file.read_bytes()]
    assert not [file for file in files if file.stat().st_mode & 0o002]
