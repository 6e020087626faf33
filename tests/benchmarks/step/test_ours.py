"""The trainer's own step, given its batches, and what is counted of its rows."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from step import ours
from step.cases import TINY, choose_systems
from step.jobs import Facts, Training
from step.ours import Ours, packed_facts
from step.text import Text

from maskloom.data.rows import Rows
from maskloom.tokenizers.base import Tokenizer
from maskloom.train.step import train_step


def test_a_step_is_the_trainers(corpus_dir: Path, tokenizer_dir: Path) -> None:
    # In a process of its own: it joins a process group, and writes RANK and others into its environment.
    text = Text(str(corpus_dir), str(tokenizer_dir))
    process = multiprocessing.get_context("spawn").Process(target=take_two_steps, args=(text,))
    process.start()
    process.join()
    assert process.exitcode == 0


def take_two_steps(text: Text) -> None:
    """Two steps on one batch, compared with what the trainer says of them."""
    (system,) = choose_systems(["maskloom-eager"], "cpu")
    trained = Ours(system, Training(TINY, vocab_size=512, lr=1e-3, warmup_steps=1, total_steps=10), text, "cpu")
    trainer = trained.trainer
    taken = []
    ours.train_step = lambda ready, *rest: taken.append(ready.number) or train_step(ready, *rest)
    batch = next(trained.read(workers=0))
    assert (batch.facts.rows, batch.facts.all_slots) == (TINY.step_rows, TINY.step_rows * TINY.seq_len)
    before = {key: value.clone() for key, value in trained.module.state_dict().items()}
    for _ in range(2):  # the same batch again is the next step
        trained.step(batch)
    assert taken == [0, 1]
    assert trainer.step == 2
    assert trained.mean_loss() == pytest.approx(np.log(512), rel=0.05)  # an untrained model knows nothing
    changed = [key for key, value in trained.module.state_dict().items() if not torch.equal(value, before[key])]
    assert "bert.embeddings.word_embeddings.weight" in changed
    assert "bert.encoder.layer.1.output.dense.weight" in changed
    assert not Path(trained.trainer.config.run_dir).exists()


def test_facts_of_packed_rows(tokenizer: Tokenizer) -> None:
    cls_, sep, pad = tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id
    tokens = np.array([[cls_, 9, 9, sep, cls_, 9, sep, pad], [cls_, 9, 9, 9, 9, 9, 9, sep]], np.int32)
    starts = np.array([[1, 0, 0, 0, 1, 0, 0, 1], [1, 0, 0, 0, 0, 0, 0, 0]], bool)
    chosen = np.array([[0, 1, 0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 0, 0, 0, 0]], bool)
    found = packed_facts(Rows(tokens, tokens, starts, chosen), tokenizer)
    expected = Facts(rows=2, text_tokens=9, slots=15, pairs=(4**2 + 3**2 + 8**2,), predicted=3, all_slots=16)
    assert found == expected
    # Within one slot to either side: three a slot, and two at each end.
    near = packed_facts(Rows(tokens, tokens, starts, chosen), tokenizer, (None, 1))
    assert near.pairs == (*expected.pairs, 10 + 7 + 22)
    assert Facts.total([near, near]).pairs == tuple(2 * pairs for pairs in near.pairs)
    assert Facts.total([near, near]).slots == 30
