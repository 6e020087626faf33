"""The texts in TensorBoard: exactly what was written, and nothing that is a secret."""

from __future__ import annotations

import json
from pathlib import Path

import markdown
import pytest

from maskloom.data.cursors import Cursor
from maskloom.train.panels import config_panel, environment_panel, filled_panel, restarts_panel
from maskloom.train.refusal import PassedOver, write_intervals
from maskloom.train.sentences import Filled


def shown(text: str) -> str:
    """As TensorBoard makes HTML of it."""
    return markdown.markdown(text, extensions=["markdown.extensions.tables", "markdown.extensions.fenced_code"])


@pytest.mark.parametrize("text", ["plain", "a|b", "a `b` c", "`", "``x`", "*x* _y_ <b>", "two\nlines"])
def test_a_text_in_a_cell_is_shown_as_it_is(text: str) -> None:
    html = shown(environment_panel({"name": text}))
    escaped = text.replace("<", "&lt;").replace(">", "&gt;").replace("\n", r"\n")
    assert f"<td><code>{escaped}</code></td>" in html


def test_a_configuration_keeps_its_lines_and_loses_its_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "hunter2hunter2")
    said = shown(config_panel("data:\n  train: https://me:word@host/x?key=1\n  note: hunter2hunter2", 2, 1200))
    assert "Attempt 2, from step 1,200" in said
    assert "data:\n  train: https://host/x\n  note: &lt;hidden&gt;" in said


def test_a_command_loses_its_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "hunter2hunter2")
    said = environment_panel({"command": "maskloom train x data.train=https://host/x?sig=abc note=hunter2hunter2"})
    assert "`maskloom train x data.train=https://host/x note=<hidden>`" in said


def test_attempts_and_roll_backs_are_told_in_words(tmp_path: Path) -> None:
    attempts = [
        {"attempt": 1, "step": 0, "world_size": 2, "hosts": ["one", "two"], "unix_s": 0.0},
        {"attempt": 2, "step": 700, "world_size": 2, "hosts": ["one"]},
        {"attempt": 3, "step": 1400, "world_size": 1, "hosts": []},
    ]
    (tmp_path / "attempts.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in attempts) + '{"attempt": 4, "st'
    )
    cursors = [[Cursor(0).to_json()]]
    write_intervals(tmp_path, [PassedOver(1400, (1401, 1403), 96, 3, "step 1403: its loss is nan", cursors)])
    assert restarts_panel(tmp_path, "runs/other@50").splitlines() == [
        "- forked from `runs/other@50`",
        "- attempt 1 begins with 2 ranks on `one`, `two`, 1970-01-01 00:00 UTC",
        "- attempt 2 resumes behind step 700 with 2 ranks on `one`",
        "- attempt 3 resumes behind step 1,400 with 1 rank (before: 2)",
        "- rolled back to step 1,400; the rows of steps 1,401 to 1,403 were skipped (96 rows), as `step 1403: its loss is nan`",
    ]


def test_a_folder_that_says_nothing_gives_an_empty_text(tmp_path: Path) -> None:
    (tmp_path / "passed_over.json").write_text("{")
    assert restarts_panel(tmp_path) == ""


def test_each_mask_has_a_row() -> None:
    masks = [[("sat", 0.5), ("|", 0.25)], [("mat", 0.125)]]
    html = shown(filled_panel([Filled("it [MASK] on [MASK]", "it sat on mat", masks)]))
    assert html.count("<tr>") == 3
    assert "<code>sat</code> 50.0%, <code>|</code> 25.0%" in html
    assert "<code>mat</code> 12.5%" in html
