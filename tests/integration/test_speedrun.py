"""A training of the speedrun, from its command to its figures."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.benchmarks.scripts import BENCHMARKS


def test_a_training_is_metered_and_evaluated(
    run_config: dict,
    write_config: Callable[[dict], Path],
    corpus_dir: Path,
    tokenizer_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With one rank, which is the command's own process. It saves twice."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from speedrun.records import Record
    from speedrun.running import measure

    (tmp_path / "shards").symlink_to(corpus_dir)
    (tmp_path / "tokenizer").symlink_to(tokenizer_dir)
    record = Record(
        "tiny", "nothing", str(write_config(run_config)), ("model.max_position_embeddings=64", "phases.0.steps=6")
    )
    result = measure(record, tmp_path, seed=5, processes=1)
    assert (result["steps"], result["seed"], result["processes"]) == (6, 5, 1)
    assert 0.0 < result["cpu_s"] < result["wall_s"] * (os.cpu_count() or 1)
    assert 1.0 < result["loss"] < 12.0
    assert result["predicted_tokens"] > 0
    assert sys.executable not in result["command"]  # a command for people
