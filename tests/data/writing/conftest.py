"""Inputs of a few batches and shards."""

from __future__ import annotations

import json
import multiprocessing
import random
from pathlib import Path

import pytest

from tests.conftest import sentences

from .making import write_jsonl

# Imports once, in the server that the writing processes are forked from.
multiprocessing.set_forkserver_preload(["maskloom.data.writing.shards"])


@pytest.fixture
def many_files(tmp_path: Path) -> list[str]:
    """Inputs of a few batches and shards."""
    rng = random.Random(9)
    files = [write_jsonl(tmp_path / f"{n}.jsonl", [sentences(rng, 40) for _ in range(20)]) for n in range(5)]
    with files[0].open("a") as file:
        file.write(json.dumps({"text": "the same"}) + "\n")
    with files[4].open("a") as file:
        file.write(json.dumps({"text": "the same"}) + "\n")
    return [str(file) for file in files]
