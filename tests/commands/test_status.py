"""`maskloom status`: what it prints, and whether a script should start a run again."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from maskloom.cli import main
from maskloom.commands.status import described
from maskloom.status import Status, note_attempt, read_status
from maskloom.train.run_lock import RunLock

from .conftest import Command

STATUS = Status("failed", 7, 12, 3, "rank 1 was killed", "", True, "step-00000004", ("node1", "node2"), 4)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    STATUS.write(tmp_path / "run")
    return tmp_path / "run"


def test_it_says_how_a_run_stands_and_what_to_do(run: Path, succeeds: Command) -> None:
    shown = succeeds("status", run)
    for expected in (
        "failed at step 7 of 12; attempt 3",
        "4 rank(s) on node1, node2",
        "rank 1 was killed",
        "step-00000004",
    ):
        assert expected in shown
    assert shown.splitlines()[-1] == "what to do next: start the same command again to resume from step-00000004"


def test_json_says_what_the_text_says(trained_run: Path, succeeds: Command) -> None:
    text, printed = succeeds("status", trained_run), succeeds("status", trained_run, "--json")
    assert printed.count("\n") == 1
    found = json.loads(printed)
    assert (
        f"{found['run']}: {found['state']} at step {found['step']} of {found['total_steps']}; attempt 1, 1 rank" in text
    )
    assert f"what to do next: {found['next']}\n" in text
    assert f"last good:       {found['last_good_checkpoint']}\n" in text
    best = found["best"]
    assert f"best:            {best['checkpoint']}, held-out loss {best['held_out_loss']:.4f}\n" in text
    assert found["checkpoints"] == ["step-00000008", "step-00000012"]
    lines = [json.loads(line) for line in (trained_run / "metrics.jsonl").read_text().splitlines()]
    logged, evaluated = ([line for line in lines if key in line][-1] for key in ("tokens_per_s", "evaluation_loss"))
    assert (found["logged_step"], found["held_out_step"]) == (12, 12)
    assert (found["loss"], found["tokens_per_s"]) == (logged["loss_mean"], logged["tokens_per_s"])
    assert found["held_out_loss"] == evaluated["evaluation_loss"]
    assert (found["left_s"], found["reason"], found["is_silent"]) == (None, None, False)


def test_json_of_a_run_that_runs_says_what_is_left(run: Path, succeeds: Command, fails: Command) -> None:
    replace(STATUS, state="running").write(run)
    assert json.loads(succeeds("status", run, "--json"))["left_s"] is None  # nothing is logged yet
    (run / "metrics.jsonl").write_text('{"step": 6, "loss_mean": 2.5, "tokens_per_s": 8.0, "step_time_s": 3.0}\n')
    found = json.loads(succeeds("status", run, "--json"))
    assert (found["left_s"], found["loss"], found["checkpoints"], found["best"]) == (3.0 * (12 - 7), 2.5, [], None)
    assert found["next"].startswith("wait, or ask it to stop")
    assert "--json goes without" in fails("status", run, "--json", "--folder")


@pytest.mark.parametrize(("age_s", "is_gone"), [(20.0, False), (70.0, True)])
def test_a_run_that_stopped_writing_is_called_silent(age_s: float, is_gone: bool, run: Path) -> None:
    running = replace(STATUS, state="running", reason="")
    assert running.advice == ""
    lines = described(run, replace(running, updated_unix_s=1000.0), 1000.0 + age_s)
    assert any(line.startswith("no sign of life: for 1:10") for line in lines) == is_gone
    assert lines[-1].startswith("what to do next: " + ("start the same" if is_gone else "wait, or ask it to stop"))


def test_a_run_is_named_by_its_configuration_too(
    run: Path, run_config: dict, write_config: Callable[[dict], Path], succeeds: Command, fails: Command
) -> None:
    config = write_config(run_config)
    assert succeeds("status", config, f"run_dir={run}", "--folder") == f"{run}\n"
    assert "failed at step 7" in succeeds("status", config)  # run_dir is the same folder
    assert "settings go with a YAML file" in fails("status", run, "seed=3")
    assert "no run at" in fails("status", run.parent)


@pytest.mark.parametrize(
    ("status", "first_steps", "code"),
    [
        (STATUS, [0], 0),
        (replace(STATUS, state="stopped"), [0], 0),
        (replace(STATUS, state="running"), [0], 0),  # all ranks were killed
        (replace(STATUS, state="done"), [0], 1),
        (replace(STATUS, can_retry=False), [0], 1),
        (STATUS, [4, 4], 0),
        (STATUS, [4, 4, 4], 1),
        (STATUS, [0, 0, 0], 0),  # the last of them got to step 4
        (replace(STATUS, last_good_checkpoint=None), [0, 0, 0], 1),
    ],
)
def test_scripts_start_again_what_may_get_on(run: Path, status: Status, first_steps: list[int], code: int) -> None:
    status.write(run)
    for number, step in enumerate(first_steps):
        note_attempt(run, {"attempt": number + 1, "step": step})
    (run / "attempts.jsonl").open("a").write('{"attempt": 9, "st')  # cut short by a crash
    assert main(["status", str(run), "--should-restart"]) == code
    (run / "no-restart").touch()
    assert main(["status", str(run), "--should-restart"]) == 1
    assert main(["status", str(run.parent), "--should-restart"]) == 1


def test_what_killed_ranks_could_not_write_is_written(run: Path) -> None:
    replace(STATUS, state="running").write(run)
    assert main(["status", str(run), "--ended", "137", "--should-restart"]) == 0
    status = read_status(run)
    assert status is not None
    assert (status.state, status.reason) == ("failed", "what ran the ranks was killed by SIGKILL")
    replace(STATUS, state="stopped").write(run)
    assert main(["status", str(run), "--ended", "143"]) == 0
    status = read_status(run)
    assert status is not None
    assert status.state == "stopped"


def test_a_run_that_is_in_use_is_not_started_again_and_left_alone(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replace(STATUS, state="running").write(run)
    before = (run / "status.json").read_text()
    lock = RunLock(run)
    assert main(["status", str(run), "--ended", "1", "--should-restart"]) == 1
    assert f"it is in use by process {os.getpid()} on " in capsys.readouterr().out
    assert (run / "status.json").read_text() == before
    lock.release()
    assert main(["status", str(run), "--should-restart"]) == 0


@pytest.mark.parametrize("name", ["a run", "a #1", "it's", 'a"b', "a;b", "$HOME", "-rf", "日本"])
def test_commands_to_copy_mean_this_run(name: str, tmp_path: Path, succeeds: Command) -> None:
    folder = tmp_path / name
    folder.mkdir()
    replace(STATUS, state="done").write(folder)
    line = succeeds("status", folder).splitlines()[-1]
    words = shlex.split(line.removeprefix("what to do next: "))
    assert words[:2] == ["maskloom", "eval"]
    assert words[2] == f"{folder};"
    assert words[3:] == ["maskloom", "export", str(folder), "MODEL"]
    replace(STATUS, state="running", reason="").write(folder)
    line = succeeds("status", folder).splitlines()[-1]
    assert shlex.split(re.search("`(.*)`", line)[1]) == ["touch", f"{folder}/stop"]  # type: ignore[index]


def test_the_folder_is_printed_byte_by_byte_for_scripts(tmp_path: Path) -> None:
    folder = os.fsdecode(bytes(tmp_path) + b"/run \xff")
    command = [sys.executable, "-m", "maskloom.cli", "status", folder, "--folder"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, os.fsencode(folder) + b"\n")


@pytest.mark.parametrize(
    "wrong",
    [
        {"step": -1},
        {"step": 10**40},
        {"step": 10**4000},
        {"state": "s" * 100_000},
        {"attempt": True},
        {"updated_unix_s": float("nan")},
        {"updated_unix_s": 1e300},
        {"hosts": "node1"},
        {"hosts": [1]},
        {"state": "asleep"},
        {"last_good_checkpoint": 4},
        {"start": None},
        {"more": 1},
    ],
    ids=lambda wrong: str(wrong)[:60],
)
def test_a_status_with_a_value_that_cannot_be_is_damaged(wrong: dict, run: Path, fails: Command) -> None:
    values = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**values, **wrong}))
    said = fails("status", run)
    assert "status.json is damaged" in said
    assert len(said) < 1000
    (run / "status.json").write_text("[" * 5000)
    assert "status.json is damaged" in fails("status", run)


def test_a_status_of_an_earlier_version_is_read(run: Path) -> None:
    values = json.loads((run / "status.json").read_text())
    del values["start"]
    (run / "status.json").write_text(json.dumps(values))
    assert read_status(run) == replace(STATUS, updated_unix_s=values["updated_unix_s"])


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
@pytest.mark.parametrize("name", ["status.json", ".lock", "attempts.jsonl"])
def test_what_is_not_a_plain_file_in_a_run_is_named(
    name: str, make: Callable[[Path], None], run: Path, fails: Command
) -> None:
    (run / name).unlink(missing_ok=True)
    make(run / name)
    assert f"{run / name} is not a file" in fails("status", run, "--should-restart")


def test_the_check_of_a_container_tells_by_its_exit_code(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replace(STATUS, state="running").write(run)
    assert main(["status", str(run), "--healthy"]) == 0
    values = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**values, "updated_unix_s": 1000.0}))
    assert main(["status", str(run), "--healthy"]) == 1
    assert "no sign of life for" in capsys.readouterr().out
