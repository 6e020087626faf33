"""`maskloom train CONFIG --profile N`: the time of steps by part, a trace a rank, and a run that is as it was."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from maskloom.train.profiling import FORMAT, PARTS

from ..waiting import wait_until
from .conftest import environment

STEPS = 3


def maskloom_train(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "maskloom.cli", "train", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300, check=False)


def content(folder: Path) -> dict[str, object]:
    """Everything in a folder: names, bytes, times of change, and the folders themselves."""
    found: dict[str, object] = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        data = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path)] = (data, os.lstat(path).st_mtime_ns)
    return found


def in_environment_of(value: str) -> list[int]:
    """Processes that have the value in their environment."""
    found = []
    for variables in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            found += [int(variables.parent.name)] if value.encode() in variables.read_bytes() else []
    return found


@pytest.fixture(scope="module")
def config(corpus_dir: Path, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profiled")
    tree = {
        "run_dir": "run",
        "tokenizer": str(tokenizer_dir),
        "data": {"train": str(corpus_dir), "lanes": 6, "workers": 1},
        "model": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
        "phases": [{"steps": 6, "seq_len": 32, "global_batch_rows": 12, "micro_batch_rows": 3}],
        "engine": {"zero_stage": 2},
        "checkpoint": {"every_steps": 4},
        "logging": {"every_steps": 1},
    }
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return file


def slices(trace: Path) -> dict[str, int]:
    """Names of a trace's slices, and how often each is there."""
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    names = [event["name"] for event in events if event.get("ph") == "X" and "user_annotation" in event.get("cat", "")]
    return {name: names.count(name) for name in names}


def check(out: Path, ranks: int, first_step: int) -> dict[str, object]:
    summary = json.loads((out / "profile.json").read_text(encoding="utf-8"))
    assert summary["format"] == FORMAT
    assert (summary["ranks"], summary["steps"], summary["first_step"]) == (ranks, STEPS, first_step)
    assert {entry.name for entry in out.iterdir()} == {"profile.json", *(f"trace-rank-{r}.json" for r in range(ranks))}
    for seconds in summary["parts_s"]:
        assert tuple(seconds) == PARTS
        assert all(seconds[part] > 0 for part in ("data wait", "forward", "backward", "optimizer step", "other"))
    assert sum(summary["parts_s"][0].values()) == pytest.approx(summary["step_s"], rel=1e-9)
    assert sum(summary["kinds_s"].values()) == pytest.approx(summary["step_s"], rel=0.05)
    micro_batches = 12 // ranks // 3
    for rank in range(ranks):
        found = slices(out / f"trace-rank-{rank}.json")
        assert all(found[f"step {step}"] == 1 for step in range(first_step, first_step + STEPS))
        assert found["maskloom: forward"] == STEPS * micro_batches
        assert found["maskloom: optimizer step"] == found["maskloom: data wait"] == STEPS
    return summary


def test_a_run_that_does_not_exist_is_profiled_and_still_does_not(config: Path) -> None:
    done = maskloom_train(config, "--profile", STEPS, "run_dir=nowhere/new", cwd=config.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (config.parent / "nowhere").exists()
    check(config.parent / "profile", ranks=1, first_step=5)
    printed = done.stdout
    assert "steps 5 to 7 on 1 rank(s)" in printed
    assert all(f"\n{part} " in printed for part in PARTS)
    assert "profile/trace-rank-0.json" in printed


def test_a_finished_run_is_as_it_was_and_an_earlier_profile_is_replaced(config: Path) -> None:
    folder = config.parent
    assert maskloom_train(config, cwd=folder).returncode == 0
    before = content(folder / "run")
    done = maskloom_train(config, "--profile", STEPS, "--out", "here", "--processes", 2, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert content(folder / "run") == before
    summary = check(folder / "here", ranks=2, first_step=6 + 5)
    assert all(seconds["communication"] > 0 for seconds in summary["parts_s"])  # type: ignore[attr-defined]
    assert "run/checkpoints/step-00000006" in done.stdout
    assert "least to most of the ranks" in done.stdout
    again = maskloom_train(config, "--profile", STEPS, "--out", "here", cwd=folder)
    assert again.returncode == 0, again.stdout + again.stderr
    check(folder / "here", ranks=1, first_step=6 + 5)
    assert content(folder / "run") == before


@pytest.mark.parametrize(("number", "processes"), [(signal.SIGINT, 2), (signal.SIGKILL, 1)])
def test_one_that_is_ended_midway_leaves_nothing(
    number: signal.Signals, processes: int, config: Path, tmp_path: Path
) -> None:
    """Neither traces, nor temporary folders, nor ranks."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    out = tmp_path / "out"
    command = [sys.executable, "-m", "maskloom.cli", "train", config, "run_dir=new", "--out", out]
    with (tmp_path / "log").open("w", encoding="utf-8") as log:
        program = subprocess.Popen(
            [*map(str, command), "--profile", "1000000", "--processes", str(processes)],
            cwd=config.parent,
            env=environment(TMPDIR=str(temporary)),
            stdout=log,
            stderr=log,
        )
        text = (tmp_path / "log").read_text
        wait_until(lambda: "phase 0: " in text() or program.poll() is not None, "the first step")
        program.send_signal(number)
        assert program.wait(60) in (1, os.EX_TEMPFAIL, -signal.SIGKILL), text()
    wait_until(lambda: not in_environment_of(str(temporary)), "the end of ranks and readers")
    assert [entry.name for entry in temporary.iterdir() if "maskloom" in entry.name] == []
    assert not out.exists()
    assert not (config.parent / "new").exists()
    if number == signal.SIGINT:
        assert "the profile was not taken: stopped by SIGINT" in text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--profile", "3", "--out", "foreign"), "--out foreign holds other files (thesis.txt)"),
        (("--profile", "3", "--out", "run.yaml"), "--out run.yaml is not a folder"),
        (("--profile", "3", "--out", "other/profile", "run_dir=other"), "lies in the run's folder"),
        (("--profile", "3", "--max-restarts", "2"), "leave --hostfile and --max-restarts out"),
        (("--out", "elsewhere"), "--out is for the traces of --profile, which is not given"),
        (("--profile", "3", "--out", "new", "tokenizer=nothing"), "nothing"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_does_not_fit_is_refused(arguments: tuple[str, ...], message: str, config: Path) -> None:
    foreign = config.parent / "foreign"
    foreign.mkdir(exist_ok=True)
    (foreign / "thesis.txt").write_text("all of it")
    done = maskloom_train(config, *arguments, cwd=config.parent)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("maskloom train: ") == 1
    assert (foreign / "thesis.txt").read_text() == "all of it"
    assert not (config.parent / "new").exists()
