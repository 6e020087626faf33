"""Tokenizers, their files, and the table of their kinds.

    base       `TokenizerKind`: what differs between kinds, one row of the table below; `Tokenizer`: what packing and masking ask
    wordpiece  a kind; each kind is one such file, as byte_bpe and unigram
    words      where words begin, if tokens do not say that one continues
    roles      which special token pads, begins, ends and masks
    pipeline   where a text may be cut without changing a token
    loading, training, writing: files to tokenizers, text to tokenizers, tokenizers to files

A kind of one's own is a module that calls `add`, named on the command line: `--import MODULE`.
"""

from __future__ import annotations

from maskloom.tokenizers.base import TokenizerKind as TokenizerKind
from maskloom.tokenizers.byte_bpe import BYTE_BPE
from maskloom.tokenizers.unigram import UNIGRAM
from maskloom.tokenizers.wordpiece import WORDPIECE

TOKENIZERS: dict[str, TokenizerKind] = {kind.name: kind for kind in (WORDPIECE, BYTE_BPE, UNIGRAM)}
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
