"""Blocks of the pages that stand below `<!-- runs -->` are run, page by page, in a folder with a tiny corpus.

Commands of maskloom run in this process, which has imported all that they need. A training is a process of its own. The recipes
in `configs/` are scaled down. A block finds what the blocks above it made.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from maskloom import cli
from maskloom.config_file import load_config
from tests.conftest import WORDS
from tests.page_blocks import PAGES, Block, blocks, commands
from tests.recipes import RECIPES, scaled_down

RUNNABLE = [page for page in PAGES if any(block.runs for block in blocks(page))]
SMALLER = {"range(100)": "range(2)"}
"""What is smaller in Python code."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a reader has: texts, labelled texts, the recipes."""
    choice = random.Random(0)

    def text() -> str:
        return " ".join(choice.choice(WORDS) for _ in range(120))

    (tmp_path / "my_texts").mkdir()
    for number in range(200):
        (tmp_path / "my_texts" / f"{number}.txt").write_text(text())
    rows = [f"{text()},{choice.choice(['good', 'bad'])}" for _ in range(40)]
    (tmp_path / "labelled.csv").write_text("\n".join(["text,label", *rows]))
    (tmp_path / "configs").mkdir()
    for recipe in RECIPES:
        whole = load_config(recipe)
        if not whole.model.init:
            corpora = [Path(corpus.path) for corpus in whole.data.corpora]
            small = scaled_down(recipe, corpora, Path(whole.tokenizer), tmp_path, Path(whole.run_dir))
            (tmp_path / "configs" / recipe.name).write_text(yaml.safe_dump(small))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", RUNNABLE)
def test_what_a_page_says_can_be_run(page: str, folder: Path) -> None:
    for block in blocks(page):
        if block.runs:
            run(block)
    if page == "README.md":
        model = json.loads((folder / "my_model" / "config.json").read_text())
        assert model["model_type"] == "bert"
        assert (folder / "checkpoint.pt").exists()


def run(block: Block) -> None:
    if block.language == "python":
        source = block.text
        for large, small in SMALLER.items():
            source = source.replace(large, small)
        exec(compile(source, str(block), "exec"), {"__name__": "__main__"})
        return
    assert block.language == "sh", f"{block}: a block of {block.language or 'no language'} cannot be run"
    for words in commands(block.text):
        assert words[0] == "maskloom", f"{block}: {words[0]} is not a command that this test runs"
        start(block, words[1:])


def start(block: Block, words: Sequence[str]) -> None:
    if words[0] != "train":
        assert cli.main(list(words)) == 0, f"{block}: maskloom {' '.join(words)}"
        return
    arguments = re.sub(r" --processes \d+", "", " ".join(words[1:])).split()  # one rank: each takes seconds to start
    command = [sys.executable, "-m", "maskloom.train", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{block}: maskloom {' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
