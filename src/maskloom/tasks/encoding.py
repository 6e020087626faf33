"""Texts to vectors: the mean of the last layer over a text's tokens.

The first and the last token (`cls`, `sep`) count too, as in sentence-transformers. So a text without words has a vector. The end
of a long text is cut off.

Our forward gets the texts packed into full rows. A model of Hugging Face gets them sorted by length, so little is padding.

Shapes: N texts, D hidden size, R rows, S slots a row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from maskloom.data.batch import make_micro_batch
from maskloom.data.packing import ADDED, best_fit_decreasing
from maskloom.data.rows import Rows
from maskloom.models.masked_lm import MaskedLM
from maskloom.tokenizers.base import Tokenized, Tokenizer

Floats = NDArray[np.float32]
TEXTS_AT_ONCE = 4096
"""Texts that are packed together. It bounds the memory, and still fills the rows."""


def mean_pooled(model: Any, tokenizer: Tokenizer, texts: Sequence[str], seq_len: int, micro_batch_rows: int) -> Floats:
    """The vectors of texts, float32 [N, D]. The model is as it was afterwards: whether it trains, too.

    Args:
        model: a `MaskedLM`, or an encoder of Hugging Face, with or without a head. Of a run under ZeRO-3, each rank calls this
            with the same texts.
        texts: each gives one vector, also an empty one.
        seq_len: S, the most slots of a text. The caller makes sure that the model reads so many.
        micro_batch_rows: R, rows of a forward.
    """
    forward = _packed if isinstance(model, MaskedLM) else _padded
    parts = []
    with _evaluating(model), torch.no_grad():
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            tokens = _cut(tokenizer.encode(texts[start : start + TEXTS_AT_ONCE]), seq_len - ADDED)
            parts.append(forward(model, tokenizer, tokens, seq_len, micro_batch_rows))
    return np.concatenate(parts) if parts else np.zeros((0, model.config.hidden_size), np.float32)


@contextlib.contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    trains = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(trains)


def _cut(tokens: Tokenized, most: int) -> Tokenized:
    """The first `most` tokens of each text."""
    return Tokenized.of([ids[:most] for ids in tokens]) if (tokens.lengths > most).any() else tokens


def _packed(model: MaskedLM, tokenizer: Tokenizer, tokens: Tokenized, seq_len: int, micro_batch_rows: int) -> Floats:
    """Vectors of texts by our forward: several in a row, none in two."""
    rows, owner = _pack(tokens, seq_len, tokenizer)
    device = next(model.parameters()).device
    sums = torch.zeros(len(tokens) + 1, model.config.hidden_size, device=device)  # the last is the padding's
    for start in range(0, len(rows), micro_batch_rows):
        part = slice(start, start + micro_batch_rows)
        batch = make_micro_batch(rows.take(part), micro_batch_rows, 0, tokenizer).to(device)
        hidden = model.hidden_states(batch).float()
        owners = np.full(micro_batch_rows * seq_len, len(tokens))
        owners[: owner[part].size] = owner[part].reshape(-1)
        sums.index_add_(0, torch.from_numpy(owners).to(device), hidden)
    return np.asarray(sums[:-1].cpu().numpy() / (tokens.lengths[:, None] + ADDED), np.float32)


def _pack(tokens: Tokenized, seq_len: int, tokenizer: Tokenizer) -> tuple[Rows, NDArray[np.int64]]:
    """Rows of whole texts, nothing of them predicted; and the text of each slot, int64 [R, S], or N for padding."""
    sizes = tokens.lengths + ADDED
    order = np.argsort(-sizes, kind="stable")
    bins = best_fit_decreasing(sizes[order], seq_len)
    count = int(bins.max()) + 1
    ids = np.full((count, seq_len), tokenizer.pad_id, np.int32)
    starts = np.zeros((count, seq_len), bool)
    owner = np.full((count, seq_len), len(tokens))
    used = [0] * count
    for number, row in zip(order.tolist(), bins.tolist(), strict=True):
        begin, end = used[row], used[row] + int(sizes[number])
        ids[row, begin], ids[row, end - 1] = tokenizer.cls_id, tokenizer.sep_id
        ids[row, begin + 1 : end - 1] = tokens[number]
        starts[row, begin] = True
        owner[row, begin:end] = number
        used[row] = end
    padded = [(row, end) for row, end in enumerate(used) if end < seq_len]
    for row, end in padded:
        starts[row, end] = True
    return Rows(ids, ids, starts, np.zeros_like(starts)), owner


def _padded(model: Any, tokenizer: Tokenizer, tokens: Tokenized, seq_len: int, micro_batch_rows: int) -> Floats:
    """Vectors of texts by a model of Hugging Face. A batch has as many texts as fit in R rows of S slots."""
    encoder = model.base_model
    device = next(model.parameters()).device
    found = np.zeros((len(tokens), model.config.hidden_size), np.float32)
    order = np.argsort(tokens.lengths, kind="stable")
    for numbers in _batches(order, tokens.lengths + ADDED, seq_len * micro_batch_rows):
        sizes = tokens.lengths[numbers] + ADDED
        ids = np.full((len(numbers), int(sizes.max())), tokenizer.pad_id, np.int64)
        for row, number in enumerate(numbers):
            ids[row, : sizes[row]] = [tokenizer.cls_id, *tokens[number], tokenizer.sep_id]
        there = torch.from_numpy((np.arange(ids.shape[1]) < sizes[:, None]).astype(np.int64)).to(device)
        hidden = encoder(input_ids=torch.from_numpy(ids).to(device), attention_mask=there).last_hidden_state
        weights = there[:, :, None].float()
        found[numbers] = ((hidden.float() * weights).sum(1) / weights.sum(1)).cpu().numpy()
    return found


def _batches(order: NDArray[np.int64], sizes: NDArray[np.int64], most_slots: int) -> Iterator[NDArray[np.int64]]:
    """Runs of `order`, ascending by size, that padded to their longest text have at most so many slots; at least one text."""
    start = 0
    for place, number in enumerate(order):
        if place > start and int(sizes[number]) * (place + 1 - start) > most_slots:
            yield order[start:place]
            start = place
    if start < len(order):
        yield order[start:]
