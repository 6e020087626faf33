"""The sentences of a cloze test, and which of them a training text has."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from maskloom.errors import UserError
from maskloom.files import read_plain
from maskloom.tokenizers.base import MASK

SENTENCES = Path(__file__).with_name("sentences.tsv")


class Item(NamedTuple):
    """A sentence with one [MASK], and the word that belongs there."""

    text: str
    word: str

    @property
    def whole(self) -> str:
        """The sentence with its word."""
        return self.text.replace(MASK, self.word)


def read_items(path: Path = SENTENCES) -> list[Item]:
    """The sentences of a file: one a line, with [MASK], a tab and the word.

    Raises:
        UserError: a line is of another form.
    """
    items = []
    for number, line in enumerate(read_plain(path).decode("utf-8").splitlines(), start=1):
        text, _, word = line.partition("\t")
        if text.count(MASK) != 1 or not word.strip() or "\t" in word:
            raise UserError(f"{path}, line {number}: {line!r} is not a sentence with one {MASK}, a tab and one word")
        items.append(Item(text, word.strip()))
    return items


def normalised(text: str) -> str:
    """Lower case, letters and digits only, one blank between words and at both ends."""
    words = re.findall(r"[^\W_]+", text.lower())
    return f" {' '.join(words)} "


def found_in(items: Sequence[Item], documents: Iterable[str]) -> set[int]:
    """Numbers of the sentences that the documents have, whatever their case, punctuation and line ends."""
    wanted = {number: normalised(item.whole) for number, item in enumerate(items)}
    found: set[int] = set()
    for document in documents:
        text = normalised(document)
        found |= {number for number, sentence in wanted.items() if sentence in text}
    return found
