"""Where words begin, told by the characters at both ends of each token.

For kinds whose tokens do not say that a word continues: byte-level BPE and Unigram. A word begins at a token that

- begins with a blank, other white space, or a Chinese character, as BERT begins a word with each of these;
- begins with a character of another class than that with which the token before ends. Classes are letters, numbers, white
  space and all others.

There are three exceptions. A word does not begin at a token that begins inside of a character, or with a mark that belongs to
the character before it. Nor does it begin behind a token that is one blank: this token already began the word.

The rule needs only ids, so it works for shards of tokens, too. It agrees with BERT's words better than pre-tokens do. A
pre-token can be a Chinese clause, or a word with the marks around it.

For each token one byte is kept, with a bit for each class in both of its halves. The low half has the class with which the
token ends, or all classes if a word always ends there, as behind a Chinese character or white space. The high half has the
classes behind which the token begins a word. A word begins if the high half of a token and the low half of the one before have
a bit in common.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LETTER, NUMBER, OTHER, BLANK = 1, 2, 4, 8
"""Bits of the classes. The last one is that of a token which is one blank."""
ANY = LETTER | NUMBER | OTHER | BLANK
CHINESE, SPACE, MARK = -1, -2, -3
"""Classes without a bit of their own. A mark has that of the character which it belongs to."""
CLASSES = {"L": LETTER, "N": NUMBER, "Z": SPACE, "M": MARK}
"""First letter of a Unicode category -> class."""
BEGINS_BEHIND = {LETTER: ANY - LETTER - BLANK, NUMBER: ANY - NUMBER - BLANK, OTHER: ANY - OTHER - BLANK}
BEGINS_BEHIND |= {CHINESE: ANY - BLANK, SPACE: ANY, MARK: 0}
"""Class of a first character -> the bits of the classes behind which it begins a word."""
JOINERS = "\u200c\u200d"
FIRST_OF_SIGNS = (0xC2, 0xE2, 0xEF)  # U+0080 to U+00BF, punctuation and symbols from U+2000, and full-width forms
CHINESE_RANGES = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
"""What BERT takes for Chinese characters: not kana or Hangul, whose words are longer."""


@dataclass(frozen=True)
class ClassRule:
    """The rule of the module, as `TokenizerKind.word_rule` gives it. Picklable.

    Attributes:
        ends: uint8 [vocab_size]; both ends of each token.
    """

    ends: NDArray[np.uint8]

    @staticmethod
    def of(pieces: Sequence[str | bytes]) -> ClassRule:
        """The rule for a vocabulary.

        Args:
            pieces: the text of each id, with blanks as blanks. Bytes of UTF-8 if it may begin or end inside of a character.
                Empty for an id that stands for no text: it is a word of its own.
        """
        return ClassRule(np.fromiter(map(_ends_of, pieces), np.uint8, len(pieces)))

    def __call__(self, tokens: NDArray[np.int32], starts: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Where a word begins: bool [R, S].

        Args:
            tokens: int32 [R, S].
            starts: bool [R, S]; not needed, as who asks adds them.
        """
        ends = self.ends.take(tokens)
        begins = np.ones(tokens.shape, dtype=bool)
        np.not_equal((ends[:, 1:] >> 4) & ends[:, :-1], 0, out=begins[:, 1:])
        return begins


@functools.cache
def class_of(character: str) -> int:
    """The class of a character; `MARK` for one that has that of the character before it."""
    if any(first <= ord(character) <= last for first, last in CHINESE_RANGES):
        return CHINESE
    if character.isspace():
        return SPACE
    return MARK if character in JOINERS else CLASSES.get(unicodedata.category(character)[0], OTHER)


def class_of_first_byte(byte: int) -> int:
    """The class of a character of which the first byte is known, but not all: what most of those that begin so are."""
    if 0xE3 <= byte <= 0xE9:
        return CHINESE
    return OTHER if byte in FIRST_OF_SIGNS or byte >= 0xF0 else LETTER


def _ends_of(piece: str | bytes) -> int:
    if not piece:
        return ANY << 4 | ANY
    if isinstance(piece, str):
        piece = piece.encode("utf-8", "surrogatepass")
    classes, is_inside = _classes_of(piece)
    known = [found for found in classes if found != MARK]
    last = known[-1] if known else LETTER  # of a character that another token began: most are letters
    end = BLANK if piece == b" " else last if last > 0 else ANY
    return (0 if is_inside else BEGINS_BEHIND[classes[0]]) << 4 | end


def _classes_of(piece: bytes) -> tuple[list[int], bool]:
    """The classes of the characters that begin in a piece, and whether the piece begins inside of another one."""
    text = piece.lstrip(bytes(range(0x80, 0xC0)))
    is_inside = len(text) < len(piece)
    whole = text.decode("utf-8", "ignore")
    classes = [class_of(character) for character in whole]
    rest = text[len(whole.encode()) :]
    return classes + ([class_of_first_byte(rest[0])] if rest else []), is_inside
