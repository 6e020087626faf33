"""The table of docs/speedrun.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from speedrun.records import Record, recipe_of
from speedrun.report import BEGIN, END, newest, table, write_report

from maskloom.errors import UserError

RECORD = Record("first", "the beginning", "configs/quickstart.yaml", ("optimizer.lr=1e-3",))
OTHER = Record("second", "not measured", "configs/quickstart.yaml")


def result(
    seed: int, loss: float, date: str = "2026-01-01T00:00:00", recipe: str = recipe_of(RECORD)
) -> dict[str, Any]:
    return {
        "name": "first",
        "seed": seed,
        "loss": loss,
        "cpu_s": 200.0 + seed,
        "steps": 1400,
        "date": date,
        "recipe": recipe,
        "command": RECORD.command,
        "cpu": "a CPU",
        "cores": 2,
        "commit": "0123",
        "versions": {"torch": "2.13.0"},
    }


def test_a_row_has_the_mean_and_each_seed() -> None:
    text = table([RECORD, OTHER], {"a": result(1, 4.5), "b": result(0, 3.5)})
    assert "| `first` | the beginning | **4.000** | 3.500, 4.500 | 200 to 201 | 1,400 |" in text
    assert RECORD.command in text
    assert "not measured" not in text


def test_a_result_of_other_settings_is_not_of_this_row() -> None:
    old = result(0, 9.0, recipe="another")
    assert newest(RECORD, [old]) == []
    first, second = result(0, 4.0), result(0, 3.0, date="2026-02-01T00:00:00")
    assert newest(RECORD, [second, old, first]) == [second]


def test_words_around_the_table_stay(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_report(page, [RECORD], {"a": result(0, 3.5)})
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n| record |")
    assert text.endswith(f"```\n{END}\nafter\n")
    assert "old" not in text


def test_what_cannot_be_reported_is_said(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no marks")
    with pytest.raises(UserError, match="lacks the line"):
        write_report(page, [RECORD], {"a": result(0, 3.5)})
    with pytest.raises(UserError, match="no record has a result"):
        table([RECORD], {})
