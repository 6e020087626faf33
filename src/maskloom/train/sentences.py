"""Sentences with masks that a model fills with each evaluation (`evaluation.sentences`): what it knows, in words.

Every rank fills all of them. So all make the same calls of the model, as ZeRO-3 needs, and nothing is sent. Nothing is drawn from
torch's generator, and the training stays the same.

Shapes: R rows, S slots a row, K masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from maskloom.config import Evaluation
from maskloom.data.batch import MicroBatch, make_micro_batch
from maskloom.data.rows import Rows
from maskloom.errors import UserError
from maskloom.redaction import brief
from maskloom.tokenizers.base import MASK, Tokenizer
from maskloom.tokenizers.roles import USUAL

GUESSES = 5


class Filled(NamedTuple):
    """A sentence that a model filled.

    Attributes:
        sentence: as it was given.
        text: with the likeliest token for each mask.
        masks: for each mask the likeliest tokens as people read them, and their shares of the whole vocabulary.
    """

    sentence: str
    text: str
    masks: list[list[tuple[str, float]]]


class Sentences(NamedTuple):
    """Sentences with masks, and their ids between `cls` and `sep`."""

    texts: tuple[str, ...]
    ids: list[list[int]]


def read_sentences(settings: Evaluation, tokenizer: Tokenizer) -> Sentences | None:
    """The sentences of a run; None if it has none. `settings` has its sequence length filled in.

    Raises:
        UserError: a sentence has no mask, the mask of another tokenizer, or more tokens than a row of the evaluation.
    """
    if not settings.sentences:
        return None
    seq_len = settings.seq_len
    assert seq_len is not None, "RunConfig.evaluation_filled fills it"
    own = dict.fromkeys((MASK, tokenizer.roles.mask))
    foreign = [spelling for spelling in USUAL["mask"] if spelling not in own]
    found: list[list[int]] = []
    wrong = []
    for number, sentence in enumerate(settings.sentences):
        name = f"evaluation.sentences.{number} {brief(sentence)}"
        others = [spelling for spelling in foreign if spelling in sentence]
        if others:
            wrong.append(f"{name} has {others[0]}, which is another tokenizer's mask: write {MASK}")
            continue
        ids = tokenizer.encode_with_masks(sentence)
        if tokenizer.mask_id not in ids:
            wrong.append(f"{name} has no mask: write {' or '.join(own)} for the token that is to be guessed")
        elif len(ids) > seq_len:
            wrong.append(
                f"{name} has {len(ids)} tokens, and a row of the evaluation {seq_len} slots (evaluation.seq_len): shorten it"
            )
        found.append(ids)
    if wrong:
        raise UserError("\n".join(wrong))
    return Sentences(settings.sentences, found)


def fill(
    logits_of: Callable[[MicroBatch], torch.Tensor],
    sentences: Sentences,
    tokenizer: Tokenizer,
    settings: Evaluation,
    device: torch.device,
) -> list[Filled]:
    """Fill sentences; every rank calls it, and all get the same.

    Args:
        logits_of: what `MaskedLM.masked_logits` is; the caller puts the model into evaluation mode.
    """
    size = settings.micro_batch_rows
    assert settings.seq_len is not None, "RunConfig.evaluation_filled fills it"
    filled = []
    for start in range(0, len(sentences.ids), size):
        part = sentences.ids[start : start + size]
        rows = _rows(part, settings.seq_len, tokenizer)
        capacity = int(rows.chosen.sum(axis=1).max())
        # As many rows as the evaluation has: code that was compiled for its shape is not compiled again.
        batch = make_micro_batch(rows, size, capacity, tokenizer).to(device)
        with torch.no_grad():
            logits = logits_of(batch)[: int(rows.chosen.sum()), : tokenizer.vocab_size].float()
        shares, tokens = (found.tolist() for found in logits.softmax(-1).topk(min(GUESSES, logits.shape[-1])))
        guesses = list(zip(tokens, shares, strict=True))
        for number, ids in enumerate(part):
            own = [guesses.pop(0) for _ in range(ids.count(tokenizer.mask_id))]
            filled.append(_filled(sentences.texts[start + number], ids, own, tokenizer))
    return filled


def _rows(sentences: Sequence[Sequence[int]], seq_len: int, tokenizer: Tokenizer) -> Rows:
    """A row for each sentence, [R, S]. What the masks stand for is not known, and no matter."""
    ids = np.full((len(sentences), seq_len), tokenizer.pad_id, np.int32)
    starts = np.zeros((len(sentences), seq_len), bool)
    starts[:, 0] = True
    for row, sentence in enumerate(sentences):
        ids[row, : len(sentence)] = sentence
        if len(sentence) < seq_len:
            starts[row, len(sentence)] = True
    return Rows(ids, ids, starts, ids == tokenizer.mask_id)


def _filled(
    sentence: str, ids: Sequence[int], guesses: Sequence[tuple[list[int], list[float]]], tokenizer: Tokenizer
) -> Filled:
    best = iter([tokens[0] for tokens, _ in guesses])
    whole = [next(best) if token == tokenizer.mask_id else token for token in ids]
    masks = [
        [(tokenizer.shown(token), share) for token, share in zip(tokens, shares, strict=True)]
        for tokens, shares in guesses
    ]
    return Filled(sentence, tokenizer.decode(whole[1:-1]), masks)
