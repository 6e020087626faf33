"""A kind of tokenizer from a user's own file: trained, used by a run with reader processes, and written for Hugging Face."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from maskloom.cli import main
from tests.tokenizers import characters

COMMANDS = """
import json, sys
from maskloom.cli import main
for command in json.loads(sys.argv[1]):
    print("#", *command, flush=True)
    assert main([*command, "--import", "mine"]) == 0
"""


def test_a_kind_of_ones_own_goes_through_every_command(
    corpus_dir: Path,
    run_config: dict,
    write_config: Callable[[dict], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = Path(characters.__file__).read_text(encoding="utf-8")
    (tmp_path / "mine.py").write_text(f"{own}\n\nfrom maskloom.tokenizers import add\n\nadd(CHARACTERS)\n")
    data = run_config["data"] | {"workers": 1}
    tokenizer = str(tmp_path / "tokenizer")
    config = str(
        write_config(run_config | {"tokenizer": tokenizer, "data": data, "masking": {"unit": "whole_word"}}),
    )
    run = str(tmp_path / "run")
    commands = [
        ["tokenizer", str(corpus_dir), tokenizer, "--kind", "characters", "--vocab-size", "60"],
        ["peek", config, "--steps", "0:3", "--digest"],
        ["peek", config, "--steps", "0:3", "--digest", "--workers", "2"],
        ["peek", config, "--steps", "0:6", "--rows", "12"],
        ["train", config],
        ["export", run, str(tmp_path / "export")],
        ["fill", run, "the river <mask>eads"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        cwd=tmp_path,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    _, digest, same, text, _, _, filled = (part.partition("\n")[2] for part in done.stdout.split("# ")[1:])
    assert digest == same
    assert "<mask>{r}" in text
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "done"
    assert AutoTokenizer.from_pretrained(tmp_path / "export").mask_token == "<mask>"
    assert filled.startswith("<mask> at token 11: ")

    # Without it, the same file is that of a tokenizer whose words nobody knows, and none of its kind can be trained.
    assert main(["peek", config]) == 1
    assert "is of kind other" in capsys.readouterr().err
    assert main(["tokenizer", str(corpus_dir), str(tmp_path / "x"), "--kind", "characters"]) == 1
    assert "no kind of tokenizer 'characters' that can be trained: choose one of wordpiece" in capsys.readouterr().err
