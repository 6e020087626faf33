"""The estimate of how uneven blocks skew a run, against the order that lanes really read."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from maskloom.cli import main
from maskloom.data.index.corpus import Index
from maskloom.data.order import block_at
from maskloom.data.plan import PhasePlan
from maskloom.data.skew import TEXT_BYTES_A_TOKEN, TOLERATED, note_on_sizes, notes_on_run, sizes_of
from maskloom.tokenizers.base import Tokenizer
from tests.conftest import sentences

from .corpora import corpus_of, plan_of

SEEDS = 30
NOISE = 0.05  # of the mean of so many seeds: a few lanes more or less read each of seven blocks
SEQ_LEN = 64
TEXT = 4e6  # bytes of a corpus: headers of tars are little beside it


def read(sizes: NDArray[Any], lanes: int, each: float) -> NDArray[Any]:
    """The shares of all that `lanes` lanes read, each so much, by block; the mean over some seeds."""
    taken = np.zeros(len(sizes))
    for seed in range(SEEDS):
        for lane in range(lanes):
            left, number = each, lane
            while left > 0:
                block = block_at(seed, "corpus", number, len(sizes))[1]
                part = min(left, sizes[block])
                taken[block] += part
                left -= part
                number += lanes
    return taken / taken.sum()


def misplaced(sizes: NDArray[Any], lanes: int, each: float) -> float:
    """The share of the rows that would have to come from other blocks, to be what the text is."""
    return float(np.abs(read(sizes, lanes, each) - sizes / sizes.sum()).sum() / 2)


def uneven(share: float, blocks: int) -> NDArray[Any]:
    """Block 0 holds this share of the text, the others the rest in equal parts; all together TEXT bytes."""
    return TEXT * np.asarray([share] + [(1 - share) / (blocks - 1)] * (blocks - 1))


def corpus(folder: Path, sizes: NDArray[Any]) -> Index:
    """Blocks whose tar members have about such sizes: one document each."""
    rng = random.Random(1)
    text = sentences(rng, 1000)
    return corpus_of(folder, [(text * (int(size) // len(text) + 1))[: int(size)] for size in sizes])


def lengths(index: Index) -> NDArray[Any]:
    return index.columns["length"].astype(np.float64)


CASES = {
    "one of 92 %, 8 lanes": (uneven(0.92, 7), 8, 1),  # what was met: 53 % of the rows
    "one of 92 %, 4 lanes, 4 epochs": (uneven(0.92, 7), 4, 4),
    "one of 92 %, 16 lanes, 4 epochs": (uneven(0.92, 7), 16, 4),
    "one of 50 %, 4 lanes": (uneven(0.5, 7), 4, 1),
    "one of 50 %, 64 lanes": (uneven(0.5, 7), 64, 4),
    "one of 30 %, 8 lanes": (uneven(0.3, 40), 8, 1),
    "one of 20 %, 8 lanes, 4 epochs": (uneven(0.2, 200), 8, 4),
    "one of 20 %, 16 lanes": (uneven(0.2, 200), 16, 1),
    "even, 8 lanes": (uneven(1 / 200, 200), 8, 1),
    "even, 64 lanes": (uneven(1 / 128, 128), 64, 1),
    "even, few": (uneven(1 / 7, 7), 8, 1),
}


@pytest.mark.parametrize("case", CASES)
def test_the_estimate_is_what_is_read(case: str, tmp_path: Path) -> None:
    """Within a factor of two."""
    sizes, lanes, epochs = CASES[case]
    index = corpus(tmp_path, sizes)
    found = misplaced(lengths(index), lanes, lengths(index).sum() * epochs / lanes)
    estimate = sizes_of(index).misplaced(index.header["text_bytes"] * epochs / lanes)
    assert estimate / 2 - NOISE < found < 2 * estimate + NOISE


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_warned_only_of_a_real_skew(case: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    sizes, lanes, epochs = CASES[case]
    index = corpus(tmp_path, sizes)
    steps = round(TEXT * epochs / lanes / TEXT_BYTES_A_TOKEN / SEQ_LEN)  # of a row from each lane
    plan = plan_of([index], tokenizer, [PhasePlan(steps, SEQ_LEN, 1)], lanes)
    notes = list(notes_on_run(plan))
    found = misplaced(lengths(index), lanes, lengths(index).sum() * epochs / lanes)
    if found > 2 * TOLERATED:
        assert f"holds {lengths(index)[0] / lengths(index).sum():.0%} of the text" in notes[0]
        assert f"With {lanes} lanes" in notes[0]
        assert "at offset 0 of 0.tar" in notes[0]
    if found < TOLERATED / 2:
        assert not notes


def test_the_number_of_lanes_that_is_advised_is_without_the_skew(tmp_path: Path, tokenizer: Tokenizer) -> None:
    sizes = uneven(0.3, 40)
    index = corpus(tmp_path, sizes)

    def notes(lanes: int) -> list[str]:
        steps = round(TEXT / lanes / TEXT_BYTES_A_TOKEN / SEQ_LEN)
        return list(notes_on_run(plan_of([index], tokenizer, [PhasePlan(steps, SEQ_LEN, 1)], lanes)))

    most = int(sizes_of(index).most_lanes(TEXT))
    assert f"data.lanes to at most {most} for a new run" in notes(16)[0]
    assert (notes(most), len(notes(most + 1))) == ([], 1)
    assert misplaced(sizes, most, TEXT / most) < 2 * TOLERATED


def test_the_weights_of_corpora_say_how_much_of_each_is_read(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Half a corpus's weight is half as far through it."""
    index = corpus(tmp_path / "uneven", uneven(0.92, 7))
    even = corpus(tmp_path / "even", uneven(1 / 20, 20))
    steps = round(40 * TEXT / 8 / TEXT_BYTES_A_TOKEN / SEQ_LEN)  # 20 epochs of each
    for weights, warned in (((1, 1), 0), ((1, 39), 1)):
        plan = plan_of([index, even], tokenizer, [PhasePlan(steps, SEQ_LEN, 1, weights)], 8)
        notes = list(notes_on_run(plan))
        assert len(notes) == warned
        assert all(str(tmp_path / "uneven") in note for note in notes)


@pytest.mark.parametrize(
    ("sizes", "lanes"),
    [
        (uneven(0.92, 7), 2),
        (uneven(0.5, 7), 1),
        (uneven(0.3, 40), 3),
        (uneven(0.5, 400), 1),
        (uneven(1 / 7, 7), None),
        (uneven(1 / 300, 300), None),
        (uneven(0.02, 100), None),
        (uneven(1.0, 2)[:1], None),
        (np.random.default_rng(1).uniform(2000, 4000, 300), None),
    ],
)
def test_an_uneven_corpus_is_reported_when_it_is_indexed(
    sizes: NDArray[Any], lanes: int | None, tmp_path: Path
) -> None:
    """And the smallest number of lanes from which on one epoch would be skewed."""
    note = note_on_sizes(corpus(tmp_path, sizes))
    if lanes is None:
        assert note is None
    else:
        assert note
        assert f"with more than {lanes} lane(s)" in note


def test_the_command_warns_of_skew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus(tmp_path / "a", uneven(0.92, 7))
    assert main(["index", str(tmp_path / "a" / "0.tar"), "--block-bytes", "1", "--processes", "1"]) == 0
    assert "the largest of 7, at offset 0 of 0.tar, holds 92% of the text" in capsys.readouterr().err
    corpus(tmp_path / "b", uneven(1 / 7, 7))
    assert main(["index", str(tmp_path / "b" / "0.tar"), "--block-bytes", "1", "--processes", "1"]) == 0
    assert "uneven" not in capsys.readouterr().err


def test_the_start_of_a_run_warns_of_skew(
    tmp_path: Path, run_config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    corpus(tmp_path / "a", uneven(0.92, 7))
    run_config["data"] = {"train": str(tmp_path / "a"), "lanes": 8}
    run_config["phases"] = [{"steps": 100, "seq_len": 32, "global_batch_rows": 8}]
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(run_config))
    assert main(["train", str(file), "--show-deepspeed"]) == 0
    assert (
        "With 8 lanes, about 78% of this run's rows" in capsys.readouterr().err
    )  # half of (0.92 - 1/7) + 6 (1/7 - 0.08/6)
    assert main(["train", str(file), "--show-deepspeed", "data.lanes=1", "phases.0.steps=20000"]) == 0
    assert "uneven" not in capsys.readouterr().err
