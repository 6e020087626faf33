"""Pseudo-perplexity: each token of a sentence is masked in turn, and all the others are shown.

Salazar et al. 2020 (arXiv 1910.14659) sum the log probabilities of tokens that are masked one at a time. The rest of a word gives
such a token away, so rare words in many pieces look likely. Kauf and Ivanova 2023 (arXiv 2305.10588) also mask what follows of
the same word. So a word is read from left to right, and all that stands outside of it is seen. That is what is done here.

A sentence of N tokens costs N rows of N tokens, so only some are scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskloom.data.packing import ADDED
from maskloom.scoring.models import Row, Scored
from maskloom.scoring.score import Document, Prepared
from maskloom.scoring.words import digest_of, sentences, word_bytes

FEWEST_WORDS = 4  # fewer are a heading, or the number of a list
SENTENCES_AT_ONCE = 16


@dataclass(frozen=True)
class Sentence:
    """The words `first` to `end` of a document."""

    document: Document
    first: int
    end: int


def choose_sentences(
    prepared: Prepared, models: Sequence[Scored], most: int, seed: int, seq_len: int
) -> list[Sentence]:
    """At most `most` sentences, those with the smallest hash, that fit into each model whole."""
    limits = [min(model.longest_piece, seq_len) - ADDED for model in models]

    def fits(document: Document, first: int, end: int) -> bool:
        return all(
            tokens.starts[end] - tokens.starts[first] <= limit
            for tokens, limit in zip(document.tokens, limits, strict=True)
        )

    found = [
        Sentence(document, first, end)
        for document in prepared.documents
        for first, end in sentences(document.text, document.spans)
        if document.can_score[first:end].sum() >= FEWEST_WORDS and fits(document, first, end)
    ]

    def order(sentence: Sentence) -> bytes:
        spans = sentence.document.spans
        text = sentence.document.text[spans[sentence.first, 0] : spans[sentence.end - 1, 1]]
        return digest_of(text, seed)

    return sorted(found, key=order)[:most]


def tokens_to_score(number: int, chosen: Sequence[Sentence]) -> int:
    """How many tokens the sentences have that a model is asked for. `number` is its place among the models."""
    return sum(int(_is_asked(number, sentence).sum()) for sentence in chosen)


def pseudo_perplexity(
    number: int, model: Scored, chosen: Sequence[Sentence], advance: Callable[[float], None]
) -> dict[str, Any]:
    """Score sentences.

    Args:
        number: the model's place among those that the documents were prepared for.
        advance: is told the tokens that are done.

    Returns:
        `pseudo_perplexity`: exp of the mean loss a token. `pseudo_nats_per_byte`, which is fair between all models.
        `pseudo_tokens` and `pseudo_sentences`.
    """
    loss, tokens = 0.0, 0
    for start in range(0, len(chosen), SENTENCES_AT_ONCE):
        rows = [row for sentence in chosen[start : start + SENTENCES_AT_ONCE] for row in _rows(number, model, sentence)]
        losses, _ = model.losses(rows, advance)
        loss, tokens = loss + float(losses.sum()), tokens + len(losses)
    size = sum(
        int(word_bytes(each.document.text, each.document.spans)[each.first : each.end][_can_score(each)].sum())
        for each in chosen
    )
    return {
        "pseudo_perplexity": math.exp(min(loss / tokens, 700.0)),
        "pseudo_nats_per_byte": loss / size,
        "pseudo_tokens": tokens,
        "pseudo_sentences": len(chosen),
    }


def _rows(number: int, model: Scored, sentence: Sentence) -> Iterator[Row]:
    """A row for each token that is asked for: it is masked, and what follows of its word."""
    tokens = sentence.document.tokens[number]
    inside = slice(tokens.starts[sentence.first], tokens.starts[sentence.end])
    ids, word = tokens.ids[inside], tokens.word[inside]
    for place in np.flatnonzero(_is_asked(number, sentence)):
        rest = place + np.flatnonzero(word[place:] == word[place])
        yield model.row(ids, rest, np.array([place]))


def _is_asked(number: int, sentence: Sentence) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which tokens of a sentence are of a word that all models can score, bool [N]."""
    tokens = sentence.document.tokens[number]
    word = tokens.word[tokens.starts[sentence.first] : tokens.starts[sentence.end]]
    asked: np.ndarray[Any, np.dtype[np.bool_]] = np.append(sentence.document.can_score, False)[word]
    return asked


def _can_score(sentence: Sentence) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return sentence.document.can_score[sentence.first : sentence.end]
