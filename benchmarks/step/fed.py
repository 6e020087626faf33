"""Hugging Face's module on maskloom's own batches: the same pieces with the same masks, one a row, padded to the longest.

What is left to differ is the forward, the backward and the optimizer: the two ought to learn the same.

Shapes: N pieces, L slots of the longest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

from maskloom.data.cursors import first_cursors
from maskloom.data.plan import DataPlan
from maskloom.data.rows import Rows
from maskloom.data.stream import read_steps
from maskloom.distributed import World
from maskloom.tokenizers.base import Tokenizer
from step.cases import Device, System
from step.jobs import Batch, Training
from step.ours import packed_facts, widened
from step.text import Text
from step.theirs import Theirs


class Fed(Theirs):
    """Plain Hugging Face that reads what maskloom reads."""

    def __init__(self, system: System, training: Training, text: Text, device: Device) -> None:
        super().__init__(system, training, text, device)
        config = self.config
        tokenizer = widened(self.tokenizer, training.vocab_size)
        self.plan = DataPlan.of(config.data, config.phases, config.masking, config.seed, (self.index,), tokenizer)

    def read(self, workers: int) -> Iterator[Batch]:
        cursors = first_cursors(self.plan.lanes)
        with contextlib.closing(read_steps(self.plan, World(), cursors, 0, workers=workers)) as steps:
            for step in steps:
                facts = packed_facts(step.rows, self.tokenizer, self.windows)
                yield Batch([piece_rows(step.rows, self.tokenizer)], facts)


def piece_rows(rows: Rows, tokenizer: Tokenizer) -> dict[str, torch.Tensor]:
    """The pieces of packed rows: `input_ids`, `attention_mask` and `labels` as Hugging Face takes them, int64 [N, L]."""
    tokens, given, chosen = (part.reshape(-1) for part in (rows.tokens, rows.input_ids, rows.chosen))
    begins = np.flatnonzero(rows.starts)
    lengths = np.diff(np.append(begins, tokens.size))
    is_text = tokens[begins] != tokenizer.pad_id
    begins, lengths = begins[is_text], lengths[is_text]
    columns = np.arange(lengths.max())
    is_there = columns < lengths[:, None]
    places = np.where(is_there, begins[:, None] + columns, 0)
    found = {
        "input_ids": np.where(is_there, given[places], tokenizer.pad_id),
        "attention_mask": is_there,
        "labels": np.where(is_there & chosen[places], tokens[places], -100),
    }
    return {name: torch.from_numpy(value.astype(np.int64)) for name, value in found.items()}
