"""The words of a text as ranges of its characters, and which of them are masked.

Nothing here knows a tokenizer. So all models that are compared have the same words masked, and a text has the same masks at
any time. A word is a run of letters, digits and their marks. It may have apostrophes inside ("don't"). What else stands between
two blanks or letters ("...", an emoji) is a word, too. Chinese, Japanese and Thai have no blanks: a word ends there at the next
full stop, comma or other such mark.
"""

from __future__ import annotations

import functools
import hashlib
import re
import sys
import unicodedata

import numpy as np
from numpy.typing import NDArray

Spans = NDArray[np.int64]
Bools = NDArray[np.bool_]

LONGEST_WORD_CHARS = 48
"""Longer words are codes, or sentences of a script without spaces. They are never masked."""
JOINERS = "\u200c\u200d"  # stand inside the words of some scripts
SENTENCE_END = re.compile(r"[.!?。！？…]+[\"'”’»)\]]*$")


def words_of(text: str) -> Spans:
    """First character of each word and the one behind its last, int64 [words, 2]. All but white space is in a word."""
    return np.array([match.span() for match in _pattern().finditer(text)], np.int64).reshape(-1, 2)


def digest_of(text: str, seed: int, size_bytes: int = 8) -> bytes:
    """A hash of a text for a seed. It chooses the documents, sentences and words that models are asked for."""
    return hashlib.blake2b(text.encode(), digest_size=size_bytes, salt=seed.to_bytes(8, "little")).digest()


def draws(text: str, count: int, seed: int) -> NDArray[np.float64]:
    """A number from 0 to 1 for each word of a text, a pure function of text, seed and the word's place: float64 [count]."""
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest_of(text, seed, 16), "little"))).random(count)


def chosen_words(text: str, spans: Spans, rate: float, seed: int) -> Bools:
    """Which words are masked: each with the probability `rate`, bool [words]."""
    return draws(text, len(spans), seed) < rate


def word_bytes(text: str, spans: Spans) -> NDArray[np.int64]:
    """Size of each word in UTF-8, int64 [words]."""
    return np.fromiter((len(text[start:end].encode()) for start, end in spans), np.int64, len(spans))


def sentences(text: str, spans: Spans) -> list[tuple[int, int]]:
    """The sentences of a text as ranges of its words. A sentence ends with a mark such as a full stop that white space follows,
    or with a blank line. An abbreviation ends one, too."""
    found, first = [], 0
    for word in range(len(spans)):
        gap_end = spans[word + 1, 0] if word + 1 < len(spans) else len(text)
        gap = text[spans[word, 1] : gap_end]
        is_end = gap.count("\n") > 1 or (gap and SENTENCE_END.search(text[spans[word, 0] : spans[word, 1]]))
        if is_end or word + 1 == len(spans):
            found.append((first, word + 1))
            first = word + 1
    return found


@functools.cache
def _pattern() -> re.Pattern[str]:
    """Python's `\\w` lacks the marks (vowel signs, accents) that many scripts write inside words."""
    marks = "".join(char for char in map(chr, range(0x300, sys.maxunicode + 1)) if unicodedata.category(char)[0] == "M")
    inside = rf"[\w{marks}{JOINERS}]"
    return re.compile(rf"\w{inside}*(?:['’]\w{inside}*)*|[^\w\s]+")
