"""A run that is killed and restarted is the run that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from maskloom.train.checkpoint import damage
from maskloom.train.engine.files import full_precision_weights

from .conftest import final_weights, lines, losses


def start(config: Path, processes: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "maskloom.cli", "train", str(config), "--processes", str(processes)]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    environment.pop("OMP_NUM_THREADS", None)
    return subprocess.Popen(command, start_new_session=True, env=environment, stdout=subprocess.DEVNULL)


def steps_logged(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def test_kill_all_ranks_and_restart_is_bit_identical(
    run_config: dict, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    """fp32 on the CPU, two ranks, readers, dropout on, the batch growing: the same losses and the same weights, bit for bit."""
    tree = {
        **run_config,
        "data": {**run_config["data"], "workers": 1},
        "model": {**run_config["model"], "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
        "phases": [
            {"steps": 20, "seq_len": 32, "global_batch_rows": 12, "micro_batch_rows": 4},
            {
                "steps": 60,
                "seq_len": 64,
                "global_batch_rows": 24,
                "micro_batch_rows": 4,
                "batch_warmup": {"from_rows": 6, "steps": 50},
            },
        ],
        "checkpoint": {"every_steps": 7},
        "evaluation": {"every_steps": 25, "seq_len": 32},
    }
    whole = write_config({**tree, "run_dir": str(tmp_path / "whole")}, "whole.yaml")
    killed = write_config({**tree, "run_dir": str(tmp_path / "killed")}, "killed.yaml")
    assert start(whole, 2).wait(300) == 0

    for kill_after in sorted(random.Random(os.getpid()).sample(range(8, 70), 2)):
        process = start(killed, 2)
        deadline = time.monotonic() + 200
        while steps_logged(tmp_path / "killed") < kill_after and process.poll() is None:
            assert time.monotonic() < deadline, f"no {kill_after} steps in time"
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)  # launcher, ranks and readers at once
        process.wait()
    assert start(killed, 2).wait(300) == 0

    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert [line["step"] for line in lines(tmp_path / "killed")] == list(range(1, 81)), "every step is logged once"
    assert [line["tokens_seen"] for line in lines(tmp_path / "killed")] == [
        line["tokens_seen"] for line in lines(tmp_path / "whole")
    ]
    one, other = final_weights(tmp_path / "whole"), final_weights(tmp_path / "killed")
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert torch.equal(weight, other[name]), name


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_resume_at_another_world_size(
    stage: int, run_config: dict, write_config: Callable[..., Path], run_ranks: Callable[..., str], tmp_path: Path
) -> None:
    """From 2 ranks to 1 and to 3: the losses go on as they would have, within rounding (dropout off)."""
    tree = {
        **run_config,
        "model": {**run_config["model"], "hidden_dropout_prob": 0.0},
        "engine": {"zero_stage": stage},
        "checkpoint": {"every_steps": 4, "keep_last": 9},
    }
    run_ranks(write_config(tree), 2)
    whole = losses(tree["run_dir"])
    for size in (1, 3):
        copy = tmp_path / f"run{size}"
        subprocess.run(["cp", "-r", tree["run_dir"], str(copy)], check=True)
        for step in ("08", "12"):
            subprocess.run(["rm", "-r", str(copy / f"checkpoints/step-000000{step}")], check=True)
        output = run_ranks(write_config({**tree, "run_dir": str(copy)}), size)
        assert "resuming after step 4 of 12" in output
        for step, loss in losses(copy).items():
            assert loss == pytest.approx(whole[step], abs=2e-5), f"step {step} at {size} ranks"


def test_damaged_newest_checkpoint_falls_back_loudly(
    run_config: dict, write_config: Callable[..., Path], run_ranks: Callable[..., str]
) -> None:
    config = write_config(run_config)
    run_ranks(config)
    whole, weights = losses(run_config["run_dir"]), final_weights(run_config["run_dir"])
    states = next(Path(run_config["run_dir"], "checkpoints/step-00000012").glob("mp_rank*"))
    content = bytearray(states.read_bytes())
    content[len(content) // 2] ^= 1
    states.write_bytes(content)
    output = run_ranks(config)
    assert "WARNING" in output
    assert "step-00000012 is damaged" in output
    assert "resuming after step 8 of 12" in output
    assert losses(run_config["run_dir"]) == whole
    for name, weight in final_weights(run_config["run_dir"]).items():
        assert torch.equal(weight, weights[name]), name


def test_a_finished_run_does_nothing_and_resumes_with_more_steps(
    run_config: dict, write_config: Callable[..., Path], run_ranks: Callable[..., str]
) -> None:
    config = write_config(run_config)
    run_ranks(config)
    before = losses(run_config["run_dir"])
    assert "done: step 12 of 12" in run_ranks(config)
    assert losses(run_config["run_dir"]) == before
    longer = {**run_config, "phases": [{**run_config["phases"][0], "steps": 15}]}
    run_ranks(write_config(longer))
    assert list(losses(run_config["run_dir"])) == list(range(1, 16))


def test_resume_with_another_corpus_is_refused(
    run_config: dict, write_config: Callable[..., Path], run_ranks: Callable[..., str], tmp_path: Path
) -> None:
    from maskloom.data.writing.passes import Options
    from maskloom.data.writing.shards import write_shards

    run_ranks(write_config(run_config))
    (tmp_path / "other.txt").write_text("another text " * 200)
    write_shards([str(tmp_path / "other.txt")], tmp_path / "other", Options(val_fraction=0.0))
    moved = {**run_config, "data": {**run_config["data"], "train": str(tmp_path / "other")}}
    output = run_ranks(write_config(moved), expect=1)
    assert "was started with another configuration" in output
    assert "  corpus 0: " in output


def test_diverged_weights_are_never_saved(
    run_config: dict, write_config: Callable[..., Path], run_ranks: Callable[..., str]
) -> None:
    """The loss of a step is from before its update: the weights themselves are looked at, also where nothing is logged."""
    optimizer = {"lr": 1e38, "warmup_steps": 4}
    tree = {**run_config, "optimizer": optimizer, "checkpoint": {"every_steps": 1}, "logging": {"every_steps": 100}}
    output = run_ranks(write_config(tree), 2, expect=1)
    assert "the run diverged" in output
    assert "Traceback" not in output
    for folder in Path(run_config["run_dir"], "checkpoints").glob("step-*"):
        for weight in full_precision_weights(folder).values():
            assert torch.isfinite(weight).all()
    assert json.loads(Path(run_config["run_dir"], "status.json").read_text())["state"] == "failed"


def test_a_save_never_removes_the_last_good_checkpoint(
    run_config: dict, write_config: Callable[..., Path], run_ranks: Callable[..., str]
) -> None:
    """Damaged checkpoints that are newer go aside, and are not counted among those to keep."""
    run_ranks(write_config({**run_config, "checkpoint": {"every_steps": 4, "keep_last": 3}}))
    checkpoints = Path(run_config["run_dir"], "checkpoints")
    for step in ("08", "12"):
        (checkpoints / f"step-000000{step}" / "data.json").write_text("{}")
    output = run_ranks(write_config({**run_config, "checkpoint": {"every_steps": 7}}))
    assert "resuming after step 4 of 12" in output
    assert sorted(path.name for path in checkpoints.glob("step-*")) == ["step-00000007", "step-00000012"]
    for path in checkpoints.glob("step-*"):
        assert damage(path) is None
    assert sorted(path.name for path in checkpoints.glob(".damaged-*")) == [
        ".damaged-step-00000008",
        ".damaged-step-00000012",
    ]


def test_a_run_that_was_killed_while_it_began_starts(
    run_config: dict, write_config: Callable[..., Path], run_ranks: Callable[..., str]
) -> None:
    config = write_config(run_config)
    run_ranks(config)
    whole = losses(run_config["run_dir"])
    folder = Path(run_config["run_dir"])
    for entry in ("checkpoints", "model", "environment.json", "metrics.jsonl", "status.json"):
        subprocess.run(["rm", "-r", str(folder / entry)], check=True)
    run_ranks(config)
    assert losses(run_config["run_dir"]) == whole
