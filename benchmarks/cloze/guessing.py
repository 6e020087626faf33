"""Guesses for masked words: a model's, and the most frequent tokens of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from cloze.items import Item
from maskloom.config import Masking
from maskloom.data.index.corpus import Index
from maskloom.data.masking import MaskRule
from maskloom.tokenizers.base import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Guess(NamedTuple):
    """A model's likeliest tokens for a mask, the likeliest first, and the token of the word.

    Attributes:
        answer: None if the word is not one token in this place: the item then counts as a miss.
    """

    tokens: list[int]
    answer: int | None

    @property
    def is_hit(self) -> bool:
        return self.answer in self.tokens


def guesses(model: PreTrainedModel, tokenizer: Tokenizer, items: Sequence[Item], most: int) -> list[Guess]:
    """What a model takes for the likeliest `most` tokens of each mask."""
    found = []
    for item in items:
        ids = tokenizer.encode_with_masks(item.text)
        place = ids.index(tokenizer.mask_id)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, place, : tokenizer.vocab_size]
        found.append(Guess(logits.topk(most).indices.tolist(), answer_of(tokenizer, item, ids)))
    return found


def answer_of(tokenizer: Tokenizer, item: Item, ids: Sequence[int]) -> int | None:
    """The token that stands in the mask's place if the sentence has its word. None if that takes several tokens, or
    the unknown one.

    Args:
        ids: of the sentence with its mask.
    """
    whole = tokenizer.encode_with_masks(item.whole)
    place = list(ids).index(tokenizer.mask_id)
    others = [*ids[:place], *ids[place + 1 :]]
    fits = len(whole) == len(ids) and [*whole[:place], *whole[place + 1 :]] == others
    return whole[place] if fits and tokenizer.is_maskable[whole[place]] else None


def most_frequent(corpora: Sequence[Index], tokenizer: Tokenizer, most: int) -> list[int]:
    """The most frequent tokens of the training text that can be predicted."""
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    for index in corpora:
        for block in index.train_blocks:
            ids = index.tokenized(int(block), "train", tokenizer).ids
            counts += np.bincount(ids, minlength=tokenizer.vocab_size)
    counts[~MaskRule.held_out(Masking(), 0.15, tokenizer).maskable(tokenizer)] = 0
    return [int(token) for token in np.argsort(-counts, kind="stable")[:most]]
