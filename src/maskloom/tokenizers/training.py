"""Train a tokenizer of a kind on text.

A vocabulary can have spare tokens, `[unused0]` and so on. They keep rows of the model for tokens that are added later. They are
never predicted and never drawn. Text that spells one stays text, as long as the vocabulary has its characters. More of them
pad a vocabulary to a multiple of a GPU's tile, because products of such matrices are faster.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator

from maskloom.errors import UserError
from maskloom.extensions import where_names_come_from
from maskloom.tokenizers import TOKENIZERS
from maskloom.tokenizers.base import UNUSED, Tokenizer
from maskloom.tokenizers.loading import tokenizer_of_definition
from maskloom.tokenizers.pipeline import added_tokens

UNLIKELY = -1000.0
"""Score of a spare token in Unigram. It is below the sum of the characters that spell the token, so text never becomes it."""

LONGEST_RUN = 1 << 10
RUNS = re.compile(rf"(?<!\S)\S{{{LONGEST_RUN + 1},}}|(?<!\s)\s{{{LONGEST_RUN + 1},}}")
"""Characters without a blank, or white space alone, that are more than `LONGEST_RUN`."""


def trainable_kinds() -> list[str]:
    """Names of the kinds that can be trained."""
    return [name for name, kind in TOKENIZERS.items() if kind.train is not None]


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    lowercase: bool | None = None,
    kind: str = "wordpiece",
    spare: int = 0,
    multiple: int | None = None,
) -> Tokenizer:
    """Train a vocabulary.

    Args:
        texts: the documents.
        vocab_size: largest number of ids, special and spare tokens included; before it is padded.
        lowercase: lower-case the text. None: as is usual for the kind.
        kind: a name of `TOKENIZERS`.
        spare: number of spare tokens.
        multiple: pad the number of ids to a multiple of this with more spare tokens. None: as is usual for the kind.

    Raises:
        UserError: the kind is unknown or cannot be trained, or it refuses these arguments.
    """
    row = TOKENIZERS.get(kind)
    if row is None or row.train is None:
        raise UserError(
            f"no kind of tokenizer {kind!r} that can be trained: choose one of {', '.join(trainable_kinds())}; "
            + where_names_come_from()
        )
    if spare >= vocab_size:
        raise UserError(f"--spare {spare} leaves no id of --vocab-size {vocab_size}: lower the one or raise the other")
    if multiple is not None and multiple > vocab_size:
        raise UserError(
            f"--multiple {multiple} is more than --vocab-size {vocab_size}: most ids would stand for nothing"
        )
    try:
        trained = row.train(without_long_runs(texts), vocab_size - spare, lowercase)
    except UserError as error:
        raise UserError(f"{error} (--spare keeps {spare} of {vocab_size} ids)" if spare else str(error)) from None
    ids = len(json.loads(trained)["model"]["vocab"])
    if ids > vocab_size - spare:
        raise UserError(
            f"--vocab-size {vocab_size} is too small: kind {kind!r} has {ids:,} ids for the characters of this text alone"
            + (f", and --spare keeps {spare}" if spare else "")
        )
    definition = with_spare(trained, spare, multiple or row.vocab_multiple)
    tokenizer = tokenizer_of_definition(definition, "the trained tokenizer")
    if tokenizer.kind != kind:
        raise UserError(
            f"the tokenizer that kind {kind!r} trained would be read as one of kind {tokenizer.kind!r}: correct is_of_kind"
        )
    return tokenizer


def without_long_runs(texts: Iterable[str]) -> Iterator[str]:
    """The texts, with a new one begun wherever a run would be longer than `LONGEST_RUN`.

    The library's trainers of BPE and WordPiece take the square of a word's length. One of millions of characters, as a genome
    or an encoded picture, would never end.
    """
    for text in texts:
        start = 0
        for run in RUNS.finditer(text) if len(text) > LONGEST_RUN else ():
            for end in range(run.start() + LONGEST_RUN, run.end(), LONGEST_RUN):
                yield text[start:end]
                start = end
        yield text[start:]


def with_spare(definition: str, spare: int, multiple: int) -> str:
    """A definition with spare tokens behind all others, and more of them until the number of ids is a multiple.

    It is returned unchanged if none is needed.
    """
    tree = json.loads(definition)
    vocabulary = tree["model"]["vocab"]
    is_scored = isinstance(vocabulary, list)  # Unigram's: the place is the id
    known = {token for token, _ in vocabulary} if is_scored else set(vocabulary)
    first = len(vocabulary) if is_scored else 1 + max([*vocabulary.values(), *(t["id"] for t in added_tokens(tree))])
    number = spare + -(first + spare) % multiple
    if number == 0:
        return definition
    names = (name for place in itertools.count() if (name := f"{UNUSED}{place}]") not in known)
    new = list(itertools.islice(names, number))
    if is_scored:
        vocabulary += [[name, UNLIKELY] for name in new]
    else:
        vocabulary |= {name: first + place for place, name in enumerate(new)}
    return json.dumps(tree, ensure_ascii=False)
