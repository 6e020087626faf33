"""Tokenizers, their files, and the table of their kinds."""

from __future__ import annotations

from maskloom.tokenizers.base import TokenizerKind as TokenizerKind
from maskloom.tokenizers.wordpiece import WORDPIECE

TOKENIZERS: dict[str, TokenizerKind] = {WORDPIECE.name: WORDPIECE}
"""Name -> kind: a tokenizer of every kind here can be read, and trained if the kind says how."""


def add(kind: TokenizerKind) -> None:
    """Add a kind of tokenizer of one's own. It is asked before the kinds of this package whether a definition is its own.

    Raises:
        ValueError: the name is taken.
    """
    if kind.name in TOKENIZERS:
        raise ValueError(f"there is a kind of tokenizer named {kind.name!r} already: give another name")
    rows = dict(TOKENIZERS)
    TOKENIZERS.clear()
    TOKENIZERS.update({kind.name: kind} | rows)
