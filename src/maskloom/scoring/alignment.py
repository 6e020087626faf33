"""Which tokens make up which word of a text, and where the text may be cut for all models alike.

    text -> words (`words`) -> words that every tokenizer keeps apart -> tokens of each model by word -> pieces: runs of words
                               (`join`)                                  (`align`)                       that fit into every
                                                                                                         model (`cut`)

Some tokenizers do not cut at punctuation: a token can hold the end of one word and the front of the next. Then the two are one
word for all models. A word with a special token, such as that for unknown text, is never masked.

Shapes: W words of a text, N tokens of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maskloom.data.packing import ADDED
from maskloom.scoring.words import LONGEST_WORD_CHARS, Bools, Spans
from maskloom.tokenizers.base import Int32s, Tokenizer

Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class Encoded:
    """The tokens of a text, int32 [N], and where each begins and ends in it, int64 [N, 2]."""

    ids: Int32s
    offsets: Int64s


@dataclass(frozen=True)
class Aligned:
    """The tokens of a text, by word, as one model reads it.

    Attributes:
        ids: int32 [N].
        word: int64 [N]; the word that a token belongs to; -1 for white space.
        starts: int64 [W + 1]; the first token of each word. A piece of the words a to b has the tokens starts[a] to starts[b].
        is_known: bool [W]; whether the word has tokens, and all of them may be predicted.
    """

    ids: Int32s
    word: Int64s
    starts: Int64s
    is_known: Bools


def join(spans: Spans, documents: Sequence[Encoded]) -> Int64s:
    """The words that no token of any model crosses, each by the number of the given word that it begins with."""
    crossed = np.zeros(len(spans), bool)
    for document in documents:
        first, last = _touched(document.offsets, spans)
        crosses = first < last
        crossed |= _covered(first[crosses] + 1, last[crosses] + 1, len(spans))
    return np.flatnonzero(~crossed)


def joined(spans: Spans, firsts: Int64s) -> Spans:
    """The spans of words that begin with the words `firsts`, from `join`."""
    lasts = np.append(firsts[1:], len(spans)) - 1
    return np.stack([spans[firsts, 0], spans[lasts, 1]], axis=1)


def align(document: Encoded, spans: Spans, tokenizer: Tokenizer) -> Aligned:
    """Find the words that tokens belong to.

    Args:
        spans: of words that no token crosses.
    """
    first, last = _touched(document.offsets, spans)
    is_text, count = first <= last, len(spans)
    reached = np.maximum.accumulate(np.minimum(first, count)) if len(first) else first
    is_known = np.bincount(first[is_text], minlength=count) > 0
    is_known[first[is_text & ~tokenizer.is_maskable[document.ids]]] = False
    starts = np.searchsorted(reached, np.arange(count + 1), "left")
    return Aligned(document.ids, np.where(is_text, first, -1), starts, is_known)


def cut(documents: Sequence[Aligned], limits: Sequence[int]) -> tuple[list[tuple[int, int]], Bools]:
    """Cut one document into pieces that fit into every model.

    Args:
        documents: the same text as each model reads it.
        limits: the most slots that each model reads, with the first and the last token.

    Returns:
        the pieces as ranges of words, as long as they can be; and which words are in none, bool [W]: those that do not fit.
    """
    count = len(documents[0].starts) - 1
    pieces: list[tuple[int, int]] = []
    left_out = np.zeros(count, bool)
    start = 0
    while start < count:
        end = min(
            int(np.searchsorted(each.starts, each.starts[start] + limit - ADDED, "right")) - 1
            for each, limit in zip(documents, limits, strict=True)
        )
        if end > start:
            pieces.append((start, end))
        else:
            end = start + 1
            left_out[start] = True
        start = end
    return pieces, left_out


def reasons_against(documents: Sequence[Aligned], spans: Spans, in_no_piece: Bools) -> dict[str, Bools]:
    """Why some words are left out for all models: reason -> bool [W]. A word has one reason at most.

    Args:
        in_no_piece: from `cut`.
    """
    too_long = (spans[:, 1] - spans[:, 0] > LONGEST_WORD_CHARS) | in_no_piece
    unknown = ~np.logical_and.reduce([each.is_known for each in documents])
    return {"too long": too_long, "unknown to a tokenizer": unknown & ~too_long}


def _touched(offsets: Int64s, spans: Spans) -> tuple[Int64s, Int64s]:
    """The first and the last word of which a token holds a character, int64 [N] each; of white space the last is lower.

    All but white space is in a word, so they are found by the ends of the words.
    """
    first = np.searchsorted(spans[:, 1], offsets[:, 0], "right")
    return first, np.searchsorted(spans[:, 0], offsets[:, 1], "left") - 1


def _covered(first: Int64s, end: Int64s, count: int) -> Bools:
    """Which of `count` places lie in one of the ranges [first, end), bool [count]."""
    steps = np.bincount(first, minlength=count + 1) - np.bincount(end, minlength=count + 1)
    covered: Bools = np.cumsum(steps[:count]) > 0
    return covered
