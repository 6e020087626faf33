"""Ten faults of the soak; `python -m tests.cluster.soak` strikes as many as one likes."""

from __future__ import annotations

from pathlib import Path

from .soak import KINDS, STEPS_A_FAULT, draw, soak, tiny

SEED, FAULTS = 1, 10


def test_ten_faults_leave_the_run_as_if_undisturbed(corpus_dir: Path, tokenizer_dir: Path, tmp_path: Path) -> None:
    tree = tiny(tmp_path / "run", corpus_dir, tokenizer_dir, STEPS_A_FAULT * FAULTS)
    rows = soak(tree, tmp_path, draw(SEED, FAULTS, list(KINDS)))
    assert len(rows) == FAULTS


def test_faults_follow_from_the_seed() -> None:
    kinds = list(KINDS)
    assert draw(3, 50, kinds) == draw(3, 50, kinds)
    assert draw(3, 50, kinds) != draw(4, 50, kinds)
    assert {fault.kind for fault in draw(3, 400, kinds)} == set(kinds)
