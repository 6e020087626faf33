"""`maskloom compare`: runs side by side."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from maskloom.runs import read_metrics

from .conftest import Command

OLD = Path(__file__).parents[1] / "fixtures" / "runs"
"""Stored runs of earlier versions."""


@pytest.fixture
def other(trained_run: Path, tmp_path: Path) -> Path:
    """A run that differs from `trained_run` in its learning rate, and in its losses by 0.25."""
    run = tmp_path / "other"
    run.mkdir()
    for name in ("status.json", "environment.json"):
        shutil.copy(trained_run / name, run / name)
    shutil.copytree(trained_run / "model", run / "model")
    config = (trained_run / "config.yaml").read_text()
    assert "\n  lr: 0.005\n" in config
    (run / "config.yaml").write_text(config.replace("\n  lr: 0.005\n", "\n  lr: 0.5\n"))
    lines = read_metrics(trained_run)
    for line in lines:
        line.update({name: line[name] + 0.25 for name in ("evaluation_loss", "loss_mean") if name in line})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_it_shows_what_differs_and_the_curves(
    trained_run: Path, other: Path, succeeds: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "72")
    shown = succeeds("compare", trained_run, other)
    words = [line.split() for line in shown.splitlines()]
    assert ["optimizer.lr", "0.005", "0.5"] in words
    assert not any(line[:1] == ["seed"] for line in words)
    assert "versions and machine: nothing differs" in shown
    assert ["steps", "12", "of", "12", "12", "of", "12"] in words
    (evaluated,) = (line for line in read_metrics(trained_run) if line.get("evaluation_loss") and line["step"] == 12)
    loss = evaluated["evaluation_loss"]
    assert ["12", f"{loss:.4f}", f"{loss + 0.25:.4f}", "+0.2500"] in words
    assert "not of the same thing" not in shown
    assert "held-out loss by step   ● [1]   ○ [2]" in shown
    assert max(map(len, shown.partition("by step")[2].splitlines())) == 72


def test_json_has_all_of_it(trained_run: Path, other: Path, succeeds: Command) -> None:
    found = json.loads(succeeds("compare", trained_run, other, "--json"))
    assert found["configuration"] == {"optimizer.lr": [0.005, 0.5]}
    assert [each["run"] for each in found["runs"]] == [str(trained_run), str(other)]
    assert [same["step"] for same in found["logged_together"]] == list(range(1, 13))
    assert all(same["differences"] == pytest.approx([0, 0.25]) for same in found["evaluated_together"])


def test_old_runs_and_runs_at_work_are_compared_too(trained_run: Path, succeeds: Command) -> None:
    shown = succeeds("compare", OLD / "fdef54a" / "roberta", OLD / "e5a9d7d" / "zero-1", trained_run)
    assert "training loss at the same steps" in shown
    assert "held-out loss by step   ● [1] has none yet   ○ [2] has none yet   ▲ [3]" in shown
    assert "Held-out losses are not of the same thing" in shown


def test_what_is_not_a_run_is_refused(trained_run: Path, tmp_path: Path, fails: Command) -> None:
    assert f"no run at {tmp_path}" in fails("compare", trained_run, tmp_path)


def test_no_torch_is_imported_to_compare_or_to_look(tmp_path: Path) -> None:
    old = [str(OLD / "fdef54a" / name) for name in ("roberta", "modernbert")]
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from maskloom.cli import main\n"
        "import maskloom.commands.monitor\n"
        "from maskloom.viewing.links import Links\n"
        f"assert main(['compare', *{old}]) == 0\n"
        f"with Links([Path({old[0]!r})]) as links:\n"
        "    assert links.refresh() == ['roberta'] and (links.folder / 'roberta').is_dir()\n"
        "assert not {'torch', 'transformers', 'tensorflow'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120, cwd=tmp_path, stdout=subprocess.DEVNULL)
