"""Train a tokenizer of a kind on text."""

from __future__ import annotations

from collections.abc import Iterable

from maskloom.errors import UserError
from maskloom.extensions import where_names_come_from
from maskloom.tokenizers import TOKENIZERS
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.loading import tokenizer_of_definition


def trainable_kinds() -> list[str]:
    """Names of the kinds that can be trained."""
    return [name for name, kind in TOKENIZERS.items() if kind.train is not None]


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, lowercase: bool | None = None, kind: str = "wordpiece"
) -> Tokenizer:
    """Train a vocabulary.

    Args:
        texts: the documents.
        vocab_size: largest number of ids, special tokens included.
        lowercase: lower-case the text. None: as is usual for the kind.
        kind: a name of `TOKENIZERS`.

    Raises:
        UserError: the kind is unknown or cannot be trained, or it refuses these arguments.
    """
    row = TOKENIZERS.get(kind)
    if row is None or row.train is None:
        raise UserError(
            f"no kind of tokenizer {kind!r} that can be trained: choose one of {', '.join(trainable_kinds())}; "
            + where_names_come_from()
        )
    definition = row.train(texts, vocab_size, lowercase)
    tokenizer = tokenizer_of_definition(definition, "the trained tokenizer")
    if tokenizer.kind != kind:
        raise UserError(
            f"the tokenizer that kind {kind!r} trained would be read as one of kind {tokenizer.kind!r}: correct is_of_kind"
        )
    return tokenizer
