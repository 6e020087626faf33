"""docs/python.md: its blocks run, one after the other, in a folder with a corpus and a configuration."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


def test_the_blocks_of_the_page_run(
    run_config: dict,
    corpus_dir: Path,
    tokenizer_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data", "configs"):
        Path(name).mkdir()
    Path("data/mine").symlink_to(corpus_dir)
    Path("data/my_tokenizer").symlink_to(tokenizer_dir)
    run_config["phases"][0]["steps"] = 4
    Path("configs/mine.yaml").write_text(yaml.safe_dump(run_config))
    names: dict[str, Any] = {}
    text = PAGE.read_text()
    blocks = [
        (text[: found.start()].count("\n") + 1, found[1])
        for found in re.finditer(r"```python\n(.*?)```", text, re.DOTALL)
    ]
    assert len(blocks) > 4
    for line, block in blocks:
        exec(compile("\n" * line + block, str(PAGE), "exec"), names)
    assert names["run"].state == "done"
    assert names["run"].step == 4
    assert f"done 4 {names['run'].figures['loss']}\n" in capsys.readouterr().out
    assert names["stream"].step == 3
    assert (names["folder"] / "model.safetensors").exists()
