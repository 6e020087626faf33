"""A corpus that most tests of this folder damage in their own way."""

from __future__ import annotations

from pathlib import Path

import pytest

from .making import index_here, three_members


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder with two shards of three documents and their index."""
    paths = [tmp_path / "0.tar", tmp_path / "1.tar"]
    for path in paths:
        three_members(path)
    index_here(paths, tmp_path, block_bytes=1)
    return tmp_path
