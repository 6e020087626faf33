"""Blocks that were skipped: listed with their step, counted over a restart, bounded."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from maskloom.config import Masking
from maskloom.data.cursors import Cursor, LaneCursors
from maskloom.data.index.corpus import Index
from maskloom.data.lane import Skip
from maskloom.data.masking import MaskRule
from maskloom.data.plan import DataPlan, PhasePlan
from maskloom.distributed import World
from maskloom.errors import UserError
from maskloom.files import read_lines
from maskloom.tokenizers.base import Tokenizer
from maskloom.train.skipped import Skipped
from tests.conftest import sentences
from tests.data.corpora import corpus_of

LANES = 4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Index:
    rng = random.Random(5)
    return corpus_of(tmp_path_factory.mktemp("corpus"), [sentences(rng, 9) for _ in range(5)])


@pytest.fixture
def plan(corpus: Index, tokenizer: Tokenizer) -> DataPlan:
    return DataPlan((corpus,), tokenizer, 3, LANES, (PhasePlan(12, 32, 2),), Masking(), MaskRule(0.15), skips_bad=True)


def skip_of(number: int) -> Skip:
    return Skip(0, number // 5, number, "my.tar", 512 * number, "", "checksum", f"the block {number} is bad")


def cursors_at(turn: int) -> dict[int, LaneCursors]:
    """Where the lanes stand when each has opened `turn` + 1 blocks."""
    return {lane: (Cursor(lane + turn * LANES),) for lane in range(LANES)}


def opened(run: Path, plan: DataPlan, step: int = 0, count: int = 0, share: float = 1.0) -> Skipped:
    return Skipped(run, plan, step, count, share, World())


def test_each_is_listed_with_its_step(tmp_path: Path, plan: DataPlan, capsys: pytest.CaptureFixture[str]) -> None:
    skipped = opened(tmp_path, plan)
    skipped.add(1, [])
    skipped.add(2, [skip_of(4), skip_of(9)])
    skipped.add(5, [skip_of(11)])
    assert not (tmp_path / "skipped.jsonl").exists()
    skipped.settle(cursors_at(3))
    skipped.settle(cursors_at(3))
    assert skipped.count == 3
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [(line.pop("step"), Skip(**line)) for line in lines] == [
        (2, skip_of(4)),
        (2, skip_of(9)),
        (5, skip_of(11)),
    ]
    assert "step 5: skipped: the block 11 is bad" in capsys.readouterr().err


def test_a_restart_drops_the_lines_of_steps_that_are_done_again(tmp_path: Path, plan: DataPlan) -> None:
    skipped = opened(tmp_path, plan)
    for step in range(1, 6):
        skipped.add(step, [skip_of(step)])
    skipped.settle(cursors_at(9))
    with (tmp_path / "skipped.jsonl").open("a") as file:
        file.write('{"step": 6, "corp')  # a kill in the middle of a line
    again = opened(tmp_path, plan, step=3, count=3)
    assert [line["step"] for line in read_lines(tmp_path / "skipped.jsonl")] == [1, 2, 3]
    again.add(4, [skip_of(4)])
    again.settle(cursors_at(9))
    assert again.count == 4
    assert [line["step"] for line in read_lines(tmp_path / "skipped.jsonl")] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("share", "turn", "count", "is_refused"),
    [
        (0.1, 9, 4, False),  # 4 of 40
        (0.1, 9, 5, True),
        (0.0, 9, 1, False),  # one is always allowed
        (0.0, 9, 2, True),
        (0.001, 249, 1, False),
        (0.001, 249, 2, True),  # of 1,000
        (0.001, 499, 2, False),  # of 2,000
        (1.0, 0, 4, False),
    ],
)
def test_more_than_the_share_of_the_blocks_read_is_refused(
    share: float, turn: int, count: int, is_refused: bool, tmp_path: Path, plan: DataPlan
) -> None:
    skipped = opened(tmp_path, plan, share=share)
    skipped.add(7, [skip_of(number) for number in range(count)])
    if not is_refused:
        skipped.settle(cursors_at(turn))
        return
    with pytest.raises(UserError) as error:
        skipped.settle(cursors_at(turn))
    blocks = LANES * (turn + 1)
    assert f"{count} of {blocks:,} blocks were bad and skipped, more than data.max_bad_share {share}" in str(
        error.value
    )
    assert str(tmp_path / "skipped.jsonl") in str(error.value)
    assert len(read_lines(tmp_path / "skipped.jsonl")) == count  # what the message points to is there


def test_what_was_counted_before_a_restart_counts(tmp_path: Path, plan: DataPlan) -> None:
    skipped = opened(tmp_path, plan, step=7, count=4, share=0.1)
    skipped.settle(cursors_at(9))
    skipped.add(8, [skip_of(1)])
    with pytest.raises(UserError, match="5 of 40 blocks"):
        skipped.settle(cursors_at(9))


def test_the_blocks_of_every_corpus_count_as_read(tmp_path: Path, plan: DataPlan, corpus: Index) -> None:
    two = replace(plan, corpora=(corpus, corpus))
    skipped = opened(tmp_path, two, share=0.1)
    skipped.add(1, [skip_of(number) for number in range(5)])
    with pytest.raises(UserError, match="5 of 44 blocks"):  # 40 of the one, and of the other the first of each lane
        skipped.settle({lane: (*cursors, Cursor(lane)) for lane, cursors in cursors_at(9).items()})


def test_a_run_that_skips_nothing_writes_nothing(tmp_path: Path, plan: DataPlan) -> None:
    skipped = opened(tmp_path, replace(plan, skips_bad=False), share=0.0)
    skipped.settle(cursors_at(9))
    opened(tmp_path, plan).settle(cursors_at(9))
    assert not list(tmp_path.iterdir())


def test_other_ranks_write_nothing(tmp_path: Path, plan: DataPlan) -> None:
    (tmp_path / "skipped.jsonl").write_text('{"step": 9}\n')
    skipped = Skipped(tmp_path, plan, 3, 0, 1.0, World(1, 2))
    skipped.add(4, [skip_of(1)])
    skipped.settle(cursors_at(9))
    assert (tmp_path / "skipped.jsonl").read_text() == '{"step": 9}\n'
