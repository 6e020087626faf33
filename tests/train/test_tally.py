"""What is counted of rows, and what the steps between two logged lines come to."""

from __future__ import annotations

import pytest
import torch

from maskloom.models.flops import Shape, training_flops
from maskloom.tokenizers.base import Tokenizer
from maskloom.train.metrics import Work
from maskloom.train.tally import Tally, counts_of
from tests.models.test_bert import make_rows

SHAPE = Shape(2 * 8192, 32, 32**2 + 32 * 400, ((None, 2),))


def test_what_is_counted_of_rows(tokenizer: Tokenizer) -> None:
    rows = make_rows([[32], [10, 20]], tokenizer)
    predicted = int(rows.chosen.sum())
    assert predicted
    text = 30 + 8 + 18  # without [CLS] and [SEP]
    assert counts_of(rows, tokenizer).tolist() == [predicted, text, 62, 32**2 + 10**2 + 20**2]


def add(tally: Tally, predicted: int, loss: float | None) -> None:
    """A step of 100 text tokens with this mean loss, or that was not taken."""
    counts = torch.tensor([predicted, 100, 110, 2000])
    tally.add(counts, 128, None if loss is None else torch.tensor(loss * predicted, dtype=torch.float64))


def test_the_mean_is_of_the_predicted_tokens_of_steps_that_were_taken() -> None:
    tally = Tally(1000, torch.device("cpu"))
    add(tally, 10, 2.0)
    add(tally, 20, 5.0)
    add(tally, 70, None)
    mean, work = tally.take(SHAPE)
    assert mean == pytest.approx((10 * 2.0 + 20 * 5.0) / 30)
    assert work == Work(330, 384, training_flops(SHAPE, 330, [6000], 100))  # the steps that were not taken are work too
    assert tally.tokens_seen() == 1300


def test_what_was_taken_is_counted_no_more_but_for_the_tokens_seen() -> None:
    tally = Tally(0, torch.device("cpu"))
    add(tally, 10, 2.0)
    tally.take(SHAPE)
    assert tally.take(SHAPE) == (None, Work(0, 0, 0))
    add(tally, 10, None)
    assert tally.take(SHAPE)[0] is None
    assert tally.tokens_seen() == 200


def test_each_window_has_its_pairs(tokenizer: Tokenizer) -> None:
    """Of layers that see their piece, and of one that sees a neighbour to either side."""
    shape = Shape(0, 32, 0, ((None, 2), (1, 1)))
    counts = counts_of(make_rows([[32], [10, 20]], tokenizer), tokenizer, shape.distinct_windows)
    whole, near = 32**2 + 10**2 + 20**2, 3 * (32 + 10 + 20) - 2 * 3
    assert counts[3:].tolist() == [whole, near]
    tally = Tally(0, torch.device("cpu"), len(shape.windows))
    tally.add(counts, 64, None)
    assert tally.take(shape)[1].flops == 12 * 32 * (2 * whole + near)
