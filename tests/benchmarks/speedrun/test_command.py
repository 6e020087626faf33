"""`python benchmarks/speedrun.py`: what it measures again, and what is not a record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from speedrun import command, running
from speedrun.records import LIMIT_CPU_S, Record

from maskloom.errors import UserError

RECORD = Record("first", "nothing", "configs/quickstart.yaml")


def test_an_interrupted_command_resumes(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of three trainings is interrupted: the next call measures two, and a third call none."""
    asked: list[int] = []

    def measure(record: Record, data: Path, seed: int, processes: int, quiet: bool) -> dict[str, Any]:
        asked.append(seed)
        if asked == [0, 1]:
            raise KeyboardInterrupt
        return {"loss": 4.0, "cpu_s": 1.0}

    monkeypatch.setattr(command, "measure", measure)
    monkeypatch.setattr(command, "read_records", lambda: [RECORD])
    arguments = ["--data", str(data), "--results", str(data / "results.json")]
    with pytest.raises(KeyboardInterrupt):
        command.main(arguments)
    assert command.main(arguments) == 0
    assert command.main(arguments) == 0
    assert asked == [0, 1, 1, 2]


@pytest.mark.parametrize(("cpu_s", "is_record"), [(LIMIT_CPU_S, True), (LIMIT_CPU_S + 0.1, False)])
def test_more_cpu_seconds_than_allowed_are_not_a_record(
    cpu_s: float, is_record: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {"step": 1000, "evaluation_loss": 4.0, "evaluation_accuracy": 0.3, "evaluation_tokens": 100.0}

    def maskloom(arguments: list[str], folder: Path, quiet: bool) -> str:
        for rank in range(2):
            (folder / f"rank-{rank}.json").write_text(json.dumps({"cpu_s": cpu_s / 2}))
        return json.dumps(figures)

    monkeypatch.setattr(running, "_maskloom", maskloom)
    if is_record:
        assert running.measure(RECORD, tmp_path, 0, 2)["cpu_s"] == cpu_s
        return
    with pytest.raises(UserError, match=r"not a record.*lower its steps, to about 979"):
        running.measure(RECORD, tmp_path, 0, 2)


def test_unknown_records_and_missing_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no record 'nothing': there are "):
        command.main(["nothing"])
    with pytest.raises(UserError, match="run `make pretrain` first"):
        command.main(["--data", str(tmp_path)])
