"""A folder as the speedrun takes it, with files of any content."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for file in ("shards/index.json", "tokenizer/tokenizer.json"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text(file)
    return tmp_path
