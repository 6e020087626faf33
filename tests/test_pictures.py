"""The pictures of TensorBoard in docs, and the runs that they are made from."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from tools.pictures import MOST_BYTES, PICTURES, RUNS, SETTINGS

from maskloom.config_file import load_config

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", PICTURES)
def test_each_picture_is_small_and_on_a_page(name: str) -> None:
    path = ROOT / "docs" / "images" / f"tensorboard-{name}.png"
    content = path.read_bytes()
    assert len(content) <= MOST_BYTES
    width, _ = struct.unpack(
        ">II", content[16:24]
    )  # as the PNG specification has it, after the signature and the word IHDR
    assert width >= 1600
    assert f"](images/{path.name})" in (ROOT / "docs" / "watch.md").read_text()


@pytest.mark.parametrize("name", RUNS)
def test_the_runs_on_them_can_be_made_again(name: str) -> None:
    config = load_config(ROOT / "configs" / "quickstart.yaml", [*SETTINGS, *RUNS[name]])
    assert config.total_steps % config.evaluation.every_steps == 0, "the last step is on the picture"
    assert config.evaluation.sentences
