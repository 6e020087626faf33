"""A run is ill if it should write its status and does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from maskloom.errors import UserError
from maskloom.launch.health import running, silent
from maskloom.status import SILENT_S, Status

HERE = Status("running", 7, 12, 1, hosts=("here", "there"))


def write(run: Path, status: Status) -> None:
    run.mkdir(parents=True)
    status.write(run)


def test_a_run_is_silent_once_it_stopped_writing(tmp_path: Path) -> None:
    runs = {tmp_path / "run": replace(HERE, updated_unix_s=1000.0)}
    assert silent(runs, 1000.0 + SILENT_S) == []
    assert silent(runs, 1000.0 + SILENT_S + 5) == [f"{tmp_path / 'run'}: no sign of life for 1:05"]


def test_of_a_folder_of_runs_those_of_this_machine_count(tmp_path: Path) -> None:
    write(tmp_path / "mine", HERE)
    write(tmp_path / "team" / "mine", HERE)
    write(tmp_path / "theirs", replace(HERE, hosts=("elsewhere",)))
    write(tmp_path / "stopped", replace(HERE, state="stopped"))
    write(tmp_path / "damaged", HERE)
    (tmp_path / "damaged" / "status.json").write_text("{")
    assert set(running(tmp_path, "here")) == {tmp_path / "mine", tmp_path / "team" / "mine"}
    assert running(tmp_path, "nowhere") == {}


def test_a_run_that_is_named_counts_from_any_machine(tmp_path: Path) -> None:
    write(tmp_path / "run", HERE)
    assert set(running(tmp_path / "run", "nowhere")) == {tmp_path / "run"}
    with pytest.raises(UserError, match="no folder"):
        running(tmp_path / "absent", "here")
