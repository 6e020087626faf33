"""Training over blocks that are not what was indexed: skipped, counted, listed, bounded, the same after a restart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maskloom.cli import main
from maskloom.config_file import parse_config
from maskloom.data.cursors import first_cursors
from maskloom.data.index.corpus import Index
from maskloom.data.index.loading import load_index
from maskloom.data.lane import Skip
from maskloom.data.plan import DataPlan, open_corpora
from maskloom.data.stream import read_steps
from maskloom.distributed import World
from maskloom.tokenizers.loading import load_tokenizer
from maskloom.train.checkpoint import read_state
from tests.conftest import plan_for
from tests.data.corpora import block_of, corpus_of, flip

from .conftest import lines, losses

RunRanks = Callable[..., str]
PHASES = [
    {"steps": 6, "seq_len": 64, "global_batch_rows": 24, "micro_batch_rows": 12},
    {"steps": 6, "seq_len": 128, "global_batch_rows": 24, "micro_batch_rows": 12},
]


BAD = (42, 67, 101)  # numbers of blocks: of lanes of both ranks, one in the first phase and two in the second


@pytest.fixture
def settings(run_config: dict, documents: list[str], tmp_path: Path) -> dict[str, Any]:
    """A run over a corpus of 200 blocks, of which three that it comes past after a while are damaged."""
    corpus = corpus_of(tmp_path / "corpus", documents[:200], 4)
    data = {**run_config["data"], "train": corpus.folder, "workers": 1, "on_bad_data": "skip", "max_bad_share": 0.5}
    tree = {**run_config, "data": data, "phases": PHASES, "checkpoint": {"every_steps": 4, "keep_last": 9}}
    damage(tree, BAD)
    return tree


def damage(tree: dict[str, Any], numbers: tuple[int, ...]) -> None:
    plan = plan_of(tree)
    for number in numbers:
        flip(plan.corpora[0], block_of(plan, 0, number))


def plan_of(tree: dict[str, Any]) -> DataPlan:
    config = parse_config(tree, "run.yaml")
    return plan_for(config, open_corpora(config.data), load_tokenizer(config.tokenizer))


def expected_skips(tree: dict[str, Any]) -> list[tuple[int, Skip]]:
    """(step, block) that the data alone says will be skipped."""
    plan = plan_of(tree)
    steps = read_steps(plan, World(), first_cursors(plan.lanes), 0)
    return [(step.number + 1, skip) for step in steps for skip in step.skips]


def listed(run: Path | str) -> list[dict[str, Any]]:
    """The lines of skipped.jsonl; ranks are listed one after the other within a stretch."""
    text = (Path(run) / "skipped.jsonl").read_text()
    return sorted(map(json.loads, text.splitlines()), key=lambda line: (line["step"], line["number"]))


def back_to(run: Path | str, step: int, copy: Path) -> Path:
    """A copy of a run as it was when it had saved `step` and was killed later."""
    shutil.copytree(run, copy)
    for folder in (copy / "checkpoints").glob("step-*"):
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)
    return copy


def test_bad_blocks_are_skipped_counted_and_listed_also_after_a_restart(
    settings: dict, write_config: Callable[..., Path], run_ranks: RunRanks, tmp_path: Path
) -> None:
    expected = expected_skips(settings)
    assert {skip.number for _, skip in expected} >= set(BAD)
    assert min(step for step, _ in expected) > 1
    output = run_ranks(write_config(settings), 2)
    run = Path(settings["run_dir"])
    assert [
        (line["step"], line["number"], line["shard"], line["offset"], line["kind"]) for line in listed(run)
    ] == sorted((step, skip.number, skip.shard, skip.offset, "checksum") for step, skip in expected)
    for step, skip in expected:
        assert f"WARNING: step {step}: skipped: {skip.message}" in output
    for line in lines(run):
        assert line["skipped_blocks"] == sum(step <= line["step"] for step, _ in expected)
    for step in (4, 8, 12):
        state = read_state(run / "checkpoints" / f"step-{step:08d}")
        assert state.skipped == sum(at <= step for at, _ in expected)

    for step, size in ((4, 2), (8, 1)):
        copy = back_to(run, step, tmp_path / f"from {step}")
        run_ranks(write_config({**settings, "run_dir": str(copy)}), size)
        assert listed(copy) == listed(run)
        assert [line["skipped_blocks"] for line in lines(copy)] == [line["skipped_blocks"] for line in lines(run)]
        if size == 2:
            assert losses(copy) == losses(run)


def test_a_run_that_stopped_at_a_bad_block_skips_it_when_told_so(
    settings: dict, write_config: Callable[..., Path], run_ranks: RunRanks, tmp_path: Path
) -> None:
    """`on_bad_data` may change at a resume: what was read before is what skipping would have read. (One rank: the one that
    meets the block ends, and it is the launcher that ends the others.)"""
    run_ranks(write_config({**settings, "run_dir": str(tmp_path / "whole")}))
    settings["checkpoint"] = {"every_steps": 1}
    places = {plan_of(settings).corpora[0].place(block_of(plan_of(settings), 0, number))[1:] for number in BAD}
    strict = {**settings, "data": {**settings["data"], "on_bad_data": "raise"}}
    output = run_ranks(write_config(strict), expect=1)
    assert any(f"shard {url}: the block at offset {offset} (" in output for url, offset in places)
    assert "checkpoint" in output, "it went on until there"
    assert "Traceback" not in output
    run_ranks(write_config(settings))
    assert losses(settings["run_dir"]) == losses(tmp_path / "whole")
    assert listed(settings["run_dir"]) == listed(tmp_path / "whole")


def test_more_bad_blocks_than_the_bound_end_the_run(
    settings: dict, write_config: Callable[..., Path], run_ranks: RunRanks
) -> None:
    settings["data"]["max_bad_share"] = 0.01
    settings["logging"] = {"every_steps": 4}
    output = run_ranks(write_config(settings), 2, expect=1)
    assert "blocks were bad and skipped, more than data.max_bad_share 0.01 of them" in output
    assert "maskloom index --check" in output
    assert "Traceback" not in output
    status = json.loads((Path(settings["run_dir"]) / "status.json").read_text())
    assert status["state"] == "failed"
    assert "data.max_bad_share" in status["reason"]
    assert len(listed(settings["run_dir"])) > 1  # what was skipped is listed all the same


def test_one_bad_block_is_always_allowed(
    settings: dict, write_config: Callable[..., Path], run_ranks: RunRanks, documents: list[str]
) -> None:
    corpus_of(Path(settings["data"]["train"]), documents[:200], 4)  # whole again
    settings["data"] |= {"max_bad_share": 0.0, "workers": 0}
    damage(settings, BAD[:1])
    assert len(expected_skips(settings)) == 1
    run_ranks(write_config(settings))
    assert [line["number"] for line in listed(settings["run_dir"])] == [BAD[0]]


@pytest.fixture
def text_and_tokens(corpus_dir: Path, tokenizer_dir: Path, tmp_path: Path) -> tuple[Index, Index]:
    assert main(["shards", str(corpus_dir), str(tmp_path / "tokens"), "--tokenizer", str(tokenizer_dir)]) == 0
    return load_index(corpus_dir), load_index(tmp_path / "tokens")


def test_a_run_may_change_from_text_to_token_shards(
    settings: dict,
    write_config: Callable[..., Path],
    run_ranks: RunRanks,
    text_and_tokens: tuple[Index, Index],
    tmp_path: Path,
) -> None:
    text, tokens = text_and_tokens
    settings["data"] |= {"train": text.folder, "on_bad_data": "raise"}
    settings["evaluation"] = {"every_steps": 4, "seq_len": 64}
    run_ranks(write_config(settings), 2)
    copy = back_to(settings["run_dir"], 4, tmp_path / "copy")
    moved = {**settings, "run_dir": str(copy), "data": {**settings["data"], "train": tokens.folder}}
    assert "resuming after step 4 of 12" in run_ranks(write_config(moved), 2)
    assert losses(copy) == losses(settings["run_dir"])
    assert evaluations(copy) == evaluations(settings["run_dir"])


def evaluations(run: Path | str) -> list[dict[str, Any]]:
    text = (Path(run) / "metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if "evaluation_loss" in line]
