"""Which tokens of a tokenizer make up which word of a text, and where a text may be cut for all models alike.

    text -> words (`words`)      -> tokens of each model by word -> pieces: runs of words that fit into every model
                                    (`aligned`)                     (`cut`)

A word can be scored by a model if its tokens are its own: none of them holds a part of a neighbour, and none is a special token,
such as that for unknown text. What one model cannot score is not masked for any of them.

Shapes: W words of a document, N tokens of it.
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
class Aligned:
    """The tokens of a document in one tokenizer.

    Attributes:
        ids: int32 [N].
        word: int64 [N]; the word that a token belongs to, the first one if there are several. White space belongs to the next
            word.
        starts: int64 [W + 1]; the first token of each word. A piece of the words a to b has the tokens starts[a] to starts[b].
        is_own: bool [W]; whether the word has tokens, and each is of this word alone.
        is_known: bool [W]; whether all of its tokens may be predicted.
        may_cut: bool [W + 1]; whether no token crosses the front of the word.
    """

    ids: Int32s
    word: Int64s
    starts: Int64s
    is_own: Bools
    is_known: Bools
    may_cut: Bools


def aligned(text: str, spans: Spans, tokenizer: Tokenizer) -> Aligned:
    """Tokenize a document whole, and find the words that its tokens belong to.

    Args:
        spans: of the words, from `words_of`.
    """
    ids, offsets = tokenizer.encode_with_offsets(text)
    count = len(spans)
    # All but white space is in a word, so the words that a range of characters touches are found by their ends.
    first = np.searchsorted(spans[:, 1], offsets[:, 0], "right")
    last = np.searchsorted(spans[:, 0], offsets[:, 1], "left") - 1
    is_blank = first > last  # white space, or nothing
    crosses = first < last
    word = np.maximum.accumulate(np.minimum(first, count)) if len(ids) else first
    starts = np.searchsorted(word, np.arange(count + 1), "left")
    of_words = np.bincount(word[~is_blank], minlength=count)[:count] > 0
    touched = _covered(first[crosses], last[crosses] + 1, count)
    unknown = np.zeros(count, bool)
    unknown[word[~is_blank & ~tokenizer.is_maskable[ids]]] = True
    may_cut = np.ones(count + 1, bool)
    may_cut[:count] = ~_covered(first[crosses] + 1, last[crosses] + 1, count)
    return Aligned(ids, np.where(is_blank, -1, word), starts, of_words & ~touched, ~unknown, may_cut)


def cut(documents: Sequence[Aligned], limits: Sequence[int]) -> tuple[list[tuple[int, int]], Bools]:
    """Cut one document into pieces that fit into every model.

    Args:
        documents: the same document in the tokenizer of each model.
        limits: the most slots that each model reads, its first and last token included.

    Returns:
        the pieces as ranges of words, as long as they can be; and which words are in none, bool [W]: a stretch without a place
        to cut that does not fit.
    """
    count = len(documents[0].starts) - 1
    places = np.flatnonzero(np.logical_and.reduce([each.may_cut for each in documents]))
    pieces: list[tuple[int, int]] = []
    left_out = np.zeros(count, bool)
    start = 0
    while start < count:
        most = min(
            int(np.searchsorted(each.starts, each.starts[start] + limit - ADDED, "right")) - 1
            for each, limit in zip(documents, limits, strict=True)
        )
        after = places[(np.searchsorted(places, start, "right")) :]
        fitting = int(np.searchsorted(after, most, "right"))
        end = int(after[max(fitting - 1, 0)]) if len(after) else count
        if fitting:
            pieces.append((start, end))
        else:
            left_out[start:end] = True
        start = end
    return pieces, left_out


def usable(documents: Sequence[Aligned], spans: Spans, in_no_piece: Bools) -> dict[str, Bools]:
    """Why words cannot be scored by all models: reason -> bool [W]. A word has one reason at most, the first that fits.

    Args:
        in_no_piece: from `cut`.
    """
    reasons = {
        "too long": (spans[:, 1] - spans[:, 0] > LONGEST_WORD_CHARS) | in_no_piece,
        "unknown to a tokenizer": ~np.logical_and.reduce([each.is_known for each in documents]),
        "joined with a neighbour": ~np.logical_and.reduce([each.is_own for each in documents]),
    }
    seen = np.zeros(len(spans), bool)
    for reason, words in reasons.items():
        reasons[reason] = words & ~seen
        seen |= words
    return reasons


def _covered(first: Int64s, end: Int64s, count: int) -> Bools:
    """Which of `count` places lie in one of the ranges [first, end), bool [count]."""
    steps = np.bincount(first, minlength=count + 1) - np.bincount(end, minlength=count + 1)
    covered: Bools = np.cumsum(steps[:count]) > 0
    return covered
