"""What nvidia-smi may answer: rows, nothing, what is no table."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskloom.nvidia_smi import ask_nvidia_smi

ROW = {"name": "NVIDIA H200", "driver_version": "580.65.06"}


@pytest.mark.parametrize(
    ("script", "rows"),
    [
        ("echo 'NVIDIA H200, 580.65.06'", [ROW]),
        ("echo 'NVIDIA H200, 580.65.06'; echo 'of one column'", [ROW]),
        ("printf 'H\\377\\376, 580\\n'", [{"name": "H\ufffd\ufffd", "driver_version": "580"}]),
        ("head -c 300000 /dev/zero | tr '\\0' x; echo ', 580'", []),  # a cell longer than csv takes
        ("echo 'NVIDIA H200, 580.65.06'; exit 9", []),
        ("sleep 60", []),
    ],
)
def test_answers(script: str, rows: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask_nvidia_smi("--query-gpu", ["name", "driver_version"], 2.0) == rows


def test_there_may_be_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask_nvidia_smi("--query-gpu", ["name"]) == []
