"""Guesses for masked words: a model's, and the most frequent tokens."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cloze.guessing import Guess, answer_of, guesses, most_frequent
from cloze.items import Item

from maskloom.data.index.corpus import Index
from maskloom.tokenizers.base import Tokenizer


@pytest.fixture
def words(tokenizer: Tokenizer) -> list[str]:
    """Words of the vocabulary that are one token each."""
    known = [token for token in sorted(tokenizer.vocabulary) if token.isalpha() and len(token) > 1]
    assert len(known) > 4
    return known[:4]


def test_a_guess_hits_if_the_word_is_among_the_likeliest(tokenizer: Tokenizer, words: list[str]) -> None:
    """A model that always puts three known tokens first, in order."""
    first = [tokenizer.vocabulary[word] for word in words[:3]]

    def model(input_ids: torch.Tensor) -> SimpleNamespace:
        logits = torch.zeros(1, input_ids.shape[1], tokenizer.vocab_size + 8)
        logits[..., first] = torch.tensor([3.0, 2.0, 1.0])
        logits[..., tokenizer.vocab_size :] = 9.0  # rows of a padded vocabulary are not tokens
        return SimpleNamespace(logits=logits)

    items = [Item("[MASK] " + words[0], words[number]) for number in (1, 2, 3)]
    found = guesses(model, tokenizer, items, 2)  # type: ignore[arg-type]
    assert [guess.tokens for guess in found] == [first[:2]] * 3
    assert [guess.is_hit for guess in found] == [True, False, False]


def test_a_word_of_several_tokens_is_a_miss(tokenizer: Tokenizer, words: list[str]) -> None:
    whole, several = Item(f"{words[0]} [MASK] {words[1]}", words[2]), Item(f"{words[0]} [MASK]", "zq9-xj")
    ids = tokenizer.encode_with_masks(whole.text)
    assert answer_of(tokenizer, whole, ids) == tokenizer.vocabulary[words[2]]
    ids = tokenizer.encode_with_masks(several.text)
    assert answer_of(tokenizer, several, ids) is None
    assert not Guess([1, 2, 3], None).is_hit


def test_the_most_frequent_tokens_are_those_of_the_training_text(index: Index, tokenizer: Tokenizer) -> None:
    ids = np.concatenate([index.tokenized(int(block), "train", tokenizer).ids for block in index.train_blocks])
    counts = np.bincount(ids[tokenizer.is_maskable[ids]], minlength=tokenizer.vocab_size)
    found = most_frequent([index], tokenizer, 3)
    assert counts[found].tolist() == sorted(counts.tolist(), reverse=True)[:3]
