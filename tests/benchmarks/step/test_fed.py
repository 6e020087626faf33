"""Hugging Face's module on our batches: each piece is a row, with our masks, and both see the same loss."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from step.cases import FED, SPARSE_HEADS, TINY, Case
from step.fed import Fed, piece_rows
from step.jobs import Training
from step.ours import first_model
from step.text import Text

from maskloom.data.batch import Layout, micro_batches
from maskloom.data.cursors import first_cursors
from maskloom.data.rows import Rows
from maskloom.data.stream import read_steps
from maskloom.distributed import World
from maskloom.tokenizers.base import Tokenizer

CASES = [
    replace(TINY, architecture="modernbert", inner_size=96, mask_rate=0.3),
    replace(TINY, architecture="roberta", micro_batch_rows=8),
]


def test_a_piece_is_a_row(tokenizer: Tokenizer) -> None:
    cls_, sep, pad, mask = tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id, tokenizer.mask_id
    tokens = np.array([[cls_, 9, 8, sep, cls_, 7, sep, pad], [cls_, 9, 9, 9, 9, 9, 6, sep]], np.int32)
    starts = np.array([[1, 0, 0, 0, 1, 0, 0, 1], [1, 0, 0, 0, 0, 0, 0, 0]], bool)
    chosen = np.array([[0, 0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 0]], bool)
    given = np.where(chosen, mask, tokens).astype(np.int32)
    found = {name: value.tolist() for name, value in piece_rows(Rows(tokens, given, starts, chosen), tokenizer).items()}
    none = -100
    assert found == {
        "input_ids": [
            [cls_, 9, mask, sep, pad, pad, pad, pad],
            [cls_, 7, sep, pad, pad, pad, pad, pad],
            [cls_, 9, 9, 9, 9, 9, mask, sep],
        ],
        "attention_mask": [[1] * 4 + [0] * 4, [1] * 3 + [0] * 5, [1] * 8],
        "labels": [[none, none, 8, *[none] * 5], [none] * 8, [*[none] * 6, 6, none]],
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.architecture)
def test_both_see_the_same_loss_of_the_same_batches(
    case: Case, corpus_dir: Path, tokenizer_dir: Path, tokenizer: Tokenizer
) -> None:
    text, training = Text(str(corpus_dir), str(tokenizer_dir)), Training(case, vocab_size=512, max_positions=32)
    theirs = Fed(FED[case.architecture in SPARSE_HEADS], training, text, "cpu")
    ours = first_model(training, tokenizer).eval()
    theirs.module.load_state_dict(ours.state_dict())
    theirs.module.eval()
    steps = read_steps(theirs.plan, World(), first_cursors(theirs.plan.lanes), 0)
    for batch, step in itertools.islice(zip(theirs.read(workers=0), steps, strict=False), 2):
        (part,) = batch.content
        assert int((part["labels"] != -100).sum()) == batch.facts.predicted == int(step.rows.chosen.sum())
        whole = Layout(1, case.step_rows, waste=0.0)
        with torch.no_grad():
            (micro,) = micro_batches(step.rows, whole, theirs.plan.capacity(0), theirs.plan.tokenizer)
            loss, _ = ours(micro)
            assert float(theirs.module(**part).loss) == pytest.approx(float(loss) / batch.facts.predicted, rel=1e-5)
