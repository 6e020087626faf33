"""What we write is given to others: their libraries in folders of their own, and scripts that run beside them."""

from __future__ import annotations

import configparser
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from maskloom.commands.loading import load_run, plain_model
from maskloom.tokenizers.base import Tokenizer
from tests.conftest import missing

from .conftest import environment

PEERS = Path(__file__).with_name("peers.txt")
TEXTS = ["The RIVER learns, Éa quiet stone 中文.", "a [PATIENT] reads[PATIENT]", " before \n the [mask] of water", ""]
EMBED = """
import json, sys
from sentence_transformers import SentenceTransformer, models

texts, found = json.loads(sys.argv[1]), []
for folder in sys.argv[2:]:
    words = models.Transformer(folder)
    model = SentenceTransformer(modules=[words, models.Pooling(words.get_embedding_dimension())])
    vectors = model.encode(texts)
    found.append({"shape": list(vectors.shape), "longest": model.max_seq_length, "vectors": vectors.tolist(),
        "ids": [words.tokenizer(text)["input_ids"] for text in texts]})
print("FOUND" + json.dumps(found))
"""
COMMANDS = """
import json, shutil, sys
from pathlib import Path
from maskloom.cli import main

for command in json.loads(sys.argv[1]):
    if command[0] == "index":
        folder = Path(command[1])
        folder.mkdir()
        for tar in (folder.parent / "corpus").glob("*.tar"):
            shutil.copyfile(tar, folder / tar.name)
    if code := main(command):
        sys.exit(code)
"""


def install(name: str, folder: Path) -> Path:
    """The folder of a library of `peers.txt`, installed below `folder` when it is first asked for."""
    listed = configparser.ConfigParser(allow_no_value=True, delimiters=["\0"])
    listed.read(PEERS)
    if not (folder / name).exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary", ":all:", "--target", str(folder / f"{name}.partial"), *listed[name]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            missing(f"{name}, which pip could not install ({done.stderr.strip()[-300:]})")
        (folder / f"{name}.partial").rename(folder / name)
    return folder / name


def ask(script: str, arguments: Sequence[str], library: Path | None = None) -> Any:
    """What a script says that runs beside a library."""
    path = [str(library)] if library else []
    more = {
        "PYTHONPATH": os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")]).strip(os.pathsep),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment(**more),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.rpartition("FOUND")[2])


def with_ends(tokenizer: Tokenizer) -> list[list[int]]:
    """The ids of `TEXTS`, as a model reads them."""
    return [[tokenizer.cls_id, *ids.tolist(), tokenizer.sep_id] for ids in tokenizer.encode(TEXTS)]


def assert_embeds_as(found: dict[str, Any], run: Path) -> None:
    """Its vectors are means of the hidden states of the run's model."""
    loaded = load_run(run, None)
    assert found["ids"] == with_ends(loaded.tokenizer)
    model = plain_model(loaded)
    with torch.no_grad():
        hidden = model.base_model(input_ids=torch.tensor([found["ids"][0]])).last_hidden_state[0]
    torch.testing.assert_close(torch.tensor(found["vectors"][0]), hidden.mean(0), atol=1e-5, rtol=0)
