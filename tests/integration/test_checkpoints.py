"""Checkpoints of real runs: in the background, at another ZeRO stage, from another run, and where they cannot be written."""

from __future__ import annotations

import json
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from maskloom.config_file import load_config
from maskloom.train.checkpoint import damage

from .conftest import final_weights, losses, train_in_ranks

STEPS, EVERY = 9, 3
OPTIMIZERS = {
    "adamw": {"lr": 1e-3},
    "lamb": {"name": "lamb", "lr": 1e-3},
    "muon": {"name": "muon", "lr": 1e-3, "gradient_clipping": 0.0},
}
Write, Run = Callable[..., Path], Callable[..., str]


@pytest.fixture
def settings(run_config: dict) -> dict:
    """Nine steps without dropout (which depends on the layout), three to a checkpoint, in several micro-batches."""
    return {
        **run_config,
        "model": {**run_config["model"], "hidden_dropout_prob": 0.0},
        "phases": [{"steps": STEPS, "seq_len": 32, "global_batch_rows": 12, "micro_batch_rows": 2}],
        "checkpoint": {"every_steps": EVERY, "keep_last": 9},
    }


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir() if path.name != "latest.json")


def forget_after(run: Path, step: int) -> None:
    """As if it had been killed before it saved what is beyond `step`, and said so."""
    (run / "status.json").unlink()
    for folder in (run / "checkpoints").glob("step-*"):
        if int(folder.name.split("-")[1]) > step:
            shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("name", "precision", "way", "bound"),
    [
        ("adamw", "fp32", [(1, 2), (0, 1), (3, 3)], 1e-6),
        ("adamw", "fp32", [(3, 2), (2, 3), (0, 2)], 1e-6),
        ("lamb", "fp32", [(0, 2), (2, 3), (3, 1)], 1e-6),
        ("muon", "fp32", [(2, 3), (1, 2), (3, 2)], 1e-6),
        ("adamw", "bf16", [(1, 2), (3, 3), (2, 1)], 2e-3),  # stage 1 is DeepSpeed's BF16_Optimizer
    ],
)
def test_a_run_resumes_at_another_stage_and_number_of_ranks(
    name: str,
    precision: str,
    way: list[tuple[int, int]],
    bound: float,
    settings: dict,
    write_config: Write,
    run_ranks: Run,
) -> None:
    """Three steps in each of three layouts, beside the run that stays in the first one."""
    run = Path(settings["run_dir"])
    tree = {**settings, "optimizer": OPTIMIZERS[name]}
    for number, (stage, ranks) in enumerate(way):
        engine = {"zero_stage": stage, "precision": precision}
        output = run_ranks(write_config({**tree, "engine": engine}), ranks, compiles=False)
        if number == 0:
            whole, weights = losses(run), final_weights(run)
        else:
            assert f"resuming after step {number * EVERY} of {STEPS}" in output
        forget_after(run, (number + 1) * EVERY)
    for step, loss in losses(run).items():
        assert loss == pytest.approx(whole[step], abs=bound), step
    if precision == "fp32":
        for weight_name, weight in final_weights(run).items():
            # Where Adam divides by what is nearly 0, rounding counts.
            if "key.bias" not in weight_name:
                assert (weight - weights[weight_name]).abs().max() < 1e-5, weight_name


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "bf16"), (3, "fp32")])
def test_what_is_written_in_the_background_is_what_is_written_at_once(
    stage: int, precision: str, settings: dict, write_config: Write, tmp_path: Path
) -> None:
    """What a copy holds did not change while training went on, and tensors share memory in it as they do in the engine."""
    configs = []
    for name in ("background", "at-once"):
        kept = {**settings["checkpoint"], "background": name == "background"}
        engine = {"zero_stage": stage, "precision": precision}
        tree = {**settings, "run_dir": str(tmp_path / name), "checkpoint": kept, "engine": engine}
        configs.append(write_config(tree, f"{name}.yaml"))
    train_in_ranks(configs, 2, tmp_path / "output.log")
    for step in range(EVERY, STEPS + 1, EVERY):
        folders = [tmp_path / name / f"checkpoints/step-{step:08d}" for name in ("background", "at-once")]
        names = [sorted(path.name for path in folder.iterdir()) for folder in folders]
        assert names[0] == names[1]
        assert len(names[0]) == {0: 3, 1: 5, 3: 6}[stage]
        assert (folders[0] / "data.json").read_text() == (folders[1] / "data.json").read_text()
        for name in names[0]:
            files = [folder / name for folder in folders]
            assert files[0].stat().st_size == pytest.approx(files[1].stat().st_size, abs=999), name
            if name.endswith(".pt"):
                one, other = (torch.load(file, weights_only=False) for file in files)
                assert same(one, other), name


def same(one: Any, other: Any) -> bool:
    """Whether two nested values are equal, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) or (type(one) is type(other) and same(vars(one), vars(other)))


def limit_files(pids: list[int], size_bytes: int) -> None:
    """No file of these processes may grow beyond this size: a write beyond it fails as on a full disk."""
    for pid in pids:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))


def test_a_save_that_fails_on_one_rank_is_a_warning_and_the_next_one_is_made(
    settings: dict, write_config: Write, tmp_path: Path
) -> None:
    log, run = tmp_path / "output.log", Path(settings["run_dir"])

    def full_for_a_while(pids: list[int]) -> None:
        limit_files(pids[1:], 30_000)
        deadline = time.monotonic() + 120
        while "could not be written" not in (log.read_text() if log.exists() else ""):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        limit_files(pids[1:], resource.RLIM_INFINITY)

    phase = {**settings["phases"][0], "steps": 250}
    tree = {**settings, "phases": [phase], "checkpoint": {"every_steps": 100}}
    output = train_in_ranks([write_config(tree)], 2, log, meanwhile=full_for_a_while)
    assert "WARNING: the checkpoint of step 100 could not be written, and nothing of it is left: rank 1: " in output
    assert "It has no checkpoint yet. Free space on the file system of" in output
    assert "done: step 250 of 250" in output
    assert checkpoints(run) == ["step-00000200", "step-00000250"]
    assert damage(run / "checkpoints/step-00000250") is None


def test_a_third_failure_ends_the_run_and_names_the_last_good_checkpoint(
    settings: dict, write_config: Write, tmp_path: Path
) -> None:
    log, run = tmp_path / "output.log", Path(settings["run_dir"])
    first = {**settings, "phases": [{**settings["phases"][0], "steps": EVERY}]}
    train_in_ranks([write_config(first)], 2, log)
    longer = {**settings, "phases": [{**settings["phases"][0], "steps": 20}]}
    output = train_in_ranks(
        [write_config(longer)], 2, log, expect=1, meanwhile=lambda pids: limit_files(pids[1:], 30_000)
    )
    assert output.count("could not be written, and nothing of it is left") == 3
    assert "3 checkpoints in a row could not be written: rank 1: " in output
    assert "The last good one is step-00000003" in output
    assert "Traceback" not in output
    assert checkpoints(run) == ["step-00000003"]
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
    output = train_in_ranks([write_config(longer)], 2, log)
    assert "resuming after step 3 of 20" in output


def test_a_fork_begins_from_a_step_of_another_run(
    settings: dict, write_config: Write, run_ranks: Run, tmp_path: Path
) -> None:
    """First with the configuration of the other run, which it then equals; then at another learning rate, seed, phase, stage,
    precision and number of ranks."""
    origin, same, other = Path(settings["run_dir"]), tmp_path / "same", tmp_path / "other"
    run_ranks(write_config(settings), 2)
    before = checkpoints(origin)
    config = write_config({**settings, "run_dir": str(same), "from": f"{origin}@6"}, "same.yaml")
    output = run_ranks(config, 2)
    assert f"begun from {origin}/checkpoints/step-00000006" in output
    assert losses(same) == {step: loss for step, loss in losses(origin).items() if step > 6}
    for name, weight in final_weights(same).items():
        assert torch.equal(weight, final_weights(origin)[name]), name
    assert "done: step 9 of 9" in run_ranks(config, 2)
    assert f"resumed from {same}/checkpoints/step-00000009" in run_ranks(config, 2)

    phases = [settings["phases"][0], {"steps": 4, "seq_len": 64, "global_batch_rows": 24, "micro_batch_rows": 4}]
    changes = {
        "from": str(origin),
        "run_dir": str(other),
        "seed": 99,
        "optimizer": {"lr": 2e-3, "schedule": "cosine", "warmup_steps": 1},
        "phases": phases,
        "masking": {"rate": 0.3},
        "model": {**settings["model"], "hidden_dropout_prob": 0.2},
        "engine": {"zero_stage": 3, "precision": "bf16"},
        "data": {**settings["data"], "lanes": None},
    }
    config = write_config({**settings, **changes}, "other.yaml")
    output = run_ranks(config, 3)
    assert "resuming after step 9 of 13" in output
    assert list(losses(other)) == [10, 11, 12, 13]
    assert losses(other)[10] < losses(origin)[1] - 0.1
    assert load_config(other / "config.yaml").from_ == f"{origin}@9"
    assert json.loads((other / "model/config.json").read_text())["hidden_dropout_prob"] == 0.2
    forget_after(other, 9)  # it was killed before its first checkpoint: the same command begins there once more
    whole = losses(other)
    assert f"begun from {origin}/checkpoints/step-00000009" in run_ranks(config, 3)
    assert losses(other) == whole
    idle = write_config({**settings, "run_dir": str(tmp_path / "idle"), "from": str(origin)}, "idle.yaml")
    assert "there is nothing to do: it has all 9 steps" in run_ranks(idle, expect=1)
    assert not (tmp_path / "idle").exists()
    assert checkpoints(origin) == before


def test_what_a_fork_may_not_change_is_listed(
    settings: dict, write_config: Write, run_ranks: Run, tmp_path: Path, documents: list[str]
) -> None:
    from maskloom.data.writing.passes import Options
    from maskloom.data.writing.shards import write_shards
    from maskloom.tokenizers.training import train_tokenizer

    origin = Path(settings["run_dir"])
    run_ranks(write_config(settings))
    (tmp_path / "other.txt").write_text("another text " * 200)
    write_shards([str(tmp_path / "other.txt")], tmp_path / "corpus", Options(val_fraction=0.0))
    train_tokenizer(documents[:50], 100).save(tmp_path / "tokenizer.json")
    changes = {
        "from": f"{origin}@6",
        "run_dir": str(tmp_path / "fork"),
        "tokenizer": str(tmp_path / "tokenizer.json"),
        "data": {**settings["data"], "train": str(tmp_path / "corpus"), "lanes": 3},
        "model": {**settings["model"], "hidden_size": 16, "num_hidden_layers": 1},
        "optimizer": {"name": "lamb"},
        "phases": [{**settings["phases"][0], "steps": 5}],
    }
    output = run_ranks(write_config({**settings, **changes}), expect=1)
    wrong = [line.strip() for line in output.split("cannot fork from")[1].splitlines() if line.startswith("  ")]
    assert [line.partition(":")[0] for line in wrong] == [
        "data.lanes",
        "model.hidden_size",
        "model.num_hidden_layers",
        "optimizer.name",
        "corpus 0",
        "tokenizer",
        "steps",
    ]
    assert wrong[3] == f"optimizer.name: 'adamw' in {origin}, 'lamb' now"
    assert not (tmp_path / "fork").exists()
    for origin_of, message in (
        (f"{origin}@5", "has no checkpoint of step 5; it has those of 3, 6, 9"),
        ("no/run", "is not a run"),
    ):
        fork = {**settings, "run_dir": str(tmp_path / "fork"), "from": origin_of}
        output = run_ranks(write_config(fork), expect=1)
        assert message in output
        assert "Traceback" not in output
