"""Tokens by word, and cuts that every model can take."""

from __future__ import annotations

import numpy as np

from maskloom.scoring.alignment import Encoded, align, cut, join, joined
from maskloom.scoring.models import Scored
from maskloom.scoring.words import words_of

from .conftest import KINDS, TEXTS


def encoded(*offsets: tuple[int, int]) -> Encoded:
    return Encoded(np.arange(len(offsets), dtype=np.int32), np.array(offsets, np.int64).reshape(-1, 2))


def test_words_that_a_token_joins_are_one() -> None:
    text = "a (b) c"
    spans = words_of(text)  # a, (, b, ), c
    apart = encoded((0, 1), (1, 3), (3, 4), (4, 5), (5, 7))  # white space in front of a token is of no word
    across = encoded((0, 1), (2, 4), (4, 5), (6, 7))
    assert join(spans, [apart]).tolist() == [0, 1, 2, 3, 4]
    firsts = join(spans, [apart, across])
    assert firsts.tolist() == [0, 1, 3, 4]
    assert joined(spans, firsts).tolist() == [[0, 1], [2, 4], [4, 5], [6, 7]]
    assert join(spans, [encoded((0, 7))]).tolist() == [0]
    assert join(words_of(" "), [encoded((0, 1))]).tolist() == []


def test_tokens_of_words(scored: list[Scored]) -> None:
    """Each token is of the word that holds its characters, and pieces have all tokens of their words."""
    for text in filter(str.strip, TEXTS):
        for model in scored:
            document = Encoded(*model.tokenizer.encode_with_offsets(text))
            spans = words_of(text)
            spans = joined(spans, join(spans, [document]))
            found = align(document, spans, model.tokenizer)
            for (first, end), word in zip(document.offsets.tolist(), found.word.tolist(), strict=True):
                touched = [number for number, (start, last) in enumerate(spans) if start < end and last > first]
                assert ([word] if word >= 0 else []) == touched
            for word in range(len(spans)):
                inside = found.word[found.starts[word] : found.starts[word + 1]]
                assert set(inside.tolist()) <= {-1, word}


def test_offsets_belong_to_the_ids_of_training(scored: list[Scored]) -> None:
    for text in TEXTS:
        for model in scored:
            ids, offsets = model.tokenizer.encode_with_offsets(text)
            assert ids.tolist() == model.tokenizer.encode([text])[0].tolist()
            assert offsets.shape == (len(ids), 2)


def test_cuts(scored: list[Scored]) -> None:
    """Pieces are as long as they can be: one more word would be too much for a model."""
    spans = words_of(TEXTS[4])
    documents = [Encoded(*model.tokenizer.encode_with_offsets(TEXTS[4])) for model in scored]
    spans = joined(spans, join(spans, documents))
    tokens = [align(each, spans, model.tokenizer) for each, model in zip(documents, scored, strict=True)]
    limits = [20, 24, 22]
    pieces, left_out = cut(tokens, limits)
    assert len(tokens) == len(KINDS)

    def fits(start: int, end: int) -> bool:
        return all(
            each.starts[end] - each.starts[start] + 2 <= limit for each, limit in zip(tokens, limits, strict=True)
        )

    assert all(fits(start, end) for start, end in pieces)
    assert not any(fits(start, end + 1) for start, end in pieces if end < len(spans))
    (long_word,) = np.flatnonzero(left_out)  # sixty letters x are more tokens than a piece may have
    assert spans[long_word, 1] - spans[long_word, 0] == 60
