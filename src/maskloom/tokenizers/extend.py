"""Add words of a text to a tokenizer that splits them.

    text -> words, counted -> those that are split, the most saving first -> one token each, after all others

The old tokens keep their ids, so a model keeps its rows. A new word becomes part of the tokenizer's own model (`Extension`), and
not an added token: those are looked for anywhere in a text, also inside of words, before the model sees it. What a new token was
split into before is asked of the old tokenizer (`pieces_of_new`): a model starts a new row with the mean of these pieces' rows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tokenizers import Tokenizer as Encoder

from maskloom.errors import UserError
from maskloom.tokenizers import TOKENIZERS
from maskloom.tokenizers.base import OTHER, UNUSED, Extension, Tokenizer
from maskloom.tokenizers.loading import tokenizer_of_definition
from maskloom.tokenizers.pipeline import Tree, added_tokens


class NewWord(NamedTuple):
    """A word that gets a token.

    Attributes:
        token: as the vocabulary spells it.
        times: how often the text has it.
        pieces: the tokens that it was split into.
    """

    token: str
    times: int
    pieces: tuple[str, ...]

    @property
    def saved(self) -> int:
        """Tokens that the text gets shorter by."""
        return self.times * (len(self.pieces) - 1)


def extension_of(tokenizer: Tokenizer) -> Extension:
    """How the kind of a tokenizer takes new words.

    Raises:
        UserError: it cannot.
    """
    found = TOKENIZERS.get(tokenizer.kind, OTHER).extension
    if found is None:
        can = ", ".join(name for name, kind in TOKENIZERS.items() if kind.extension)
        raise UserError(
            f"{tokenizer.source} is of kind {tokenizer.kind!r}, which cannot be extended by words: only {can} can. Use the "
            "tokenizer as it is"
        )
    return found


def find_words(tokenizer: Tokenizer, texts: Iterable[str], words: int, min_count: int) -> list[NewWord]:
    """The words to add, those that save the most tokens first.

    Args:
        words: at most so many.
        min_count: leave out words that are rarer.

    Raises:
        UserError: the kind of the tokenizer cannot be extended.
    """
    extension = extension_of(tokenizer)
    tree: Tree = json.loads(tokenizer.definition)
    model = Encoder.from_str(tokenizer.definition).model
    found = []
    for word, count in _count_words(tree, extension, texts).items():
        if count < min_count or word in tokenizer.vocabulary:
            continue
        pieces = model.tokenize(word)
        if len(pieces) > 1 and all(piece.id != tokenizer.unk_id for piece in pieces):
            found.append(NewWord(word, count, tuple(piece.value for piece in pieces)))
    return sorted(found, key=lambda word: (-word.saved, word.token))[:words]


def _count_words(tree: Tree, extension: Extension, texts: Iterable[str]) -> Counter[str]:
    """How often the texts have each word, by the token that would stand for it."""
    chunks: Counter[str] = Counter()
    for text in texts:
        chunks.update(text.split())
    bare = Encoder.from_str(json.dumps(tree | {"added_tokens": [], "post_processor": None}, ensure_ascii=False))
    words: Counter[str] = Counter()
    for chunk, count in chunks.items():
        text = f" {chunk}"
        if bare.normalizer is not None:
            text = bare.normalizer.normalize_str(text)
        for pretoken, _ in bare.pre_tokenizer.pre_tokenize_str(text):
            if (word := extension.word_of(tree, pretoken)) is not None:
                words[word] += count
    return words


def extended(tokenizer: Tokenizer, words: Iterable[NewWord]) -> Tokenizer:
    """A tokenizer with a token for each of these words, after all others.

    Raises:
        UserError: the kind cannot be extended, or this definition cannot: other texts would get other ids, or ids would move.
    """
    extension, tokens = extension_of(tokenizer), [word.token for word in words]
    tree = _with_all_in_the_model(json.loads(tokenizer.definition), tokenizer)
    definition = json.dumps(extension.extended(tree, tokens, tokenizer.vocab_size), ensure_ascii=False)
    longer = tokenizer_of_definition(definition, f"the extended {tokenizer.source}", tokenizer.roles.by_role())
    if not is_extension(longer, tokenizer):
        raise UserError(f"{tokenizer.source} cannot be extended: its tokens would get other ids")
    model = Encoder.from_str(definition).model
    for number, token in enumerate(tokens, tokenizer.vocab_size):
        if [found.id for found in model.tokenize(token)] != [number]:
            raise UserError(f"{tokenizer.source} cannot be extended by {token!r}: text would not become this token")
    return longer


def _with_all_in_the_model(tree: Tree, tokenizer: Tokenizer) -> Tree:
    """A definition whose model has the added tokens too. The library would give those behind its vocabulary other ids."""
    vocabulary = tree["model"]["vocab"]
    beyond = sorted((token["id"], token["content"]) for token in added_tokens(tree) if token["id"] >= _size(vocabulary))
    if isinstance(vocabulary, list):  # the place is the id
        if [number for number, _ in beyond] != list(range(len(vocabulary), tokenizer.vocab_size)):
            raise UserError(f"{tokenizer.source} cannot be extended: ids beyond its vocabulary have no token")
        lowest = min(score for _, score in vocabulary)
        vocabulary += [[token, lowest] for _, token in beyond]
    else:
        vocabulary |= {token: number for number, token in beyond}
    return tree


def _size(vocabulary: dict[str, int] | list[list[object]]) -> int:
    return len(vocabulary) if isinstance(vocabulary, list) else 1 + max(vocabulary.values())


def is_extension(longer: Tokenizer, tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer has more ids than another one, and the same tokens and roles by the ids of that one."""
    ids = range(tokenizer.vocab_size)
    return (
        longer.vocab_size > tokenizer.vocab_size
        and longer.roles == tokenizer.roles
        and all(longer.token(number) == tokenizer.token(number) for number in ids)
    )


def pieces_of_new(longer: Tokenizer, tokenizer: Tokenizer) -> Iterator[tuple[int, list[int]]]:
    """Each id that an extension has more than the old tokenizer, and the old ids that stood for its token. None stood for a
    placeholder (`[unused*]`)."""
    model = Encoder.from_str(tokenizer.definition).model
    for number in range(tokenizer.vocab_size, longer.vocab_size):
        token = longer.token(number)
        is_word = token and not token.startswith(UNUSED)
        yield number, [piece.id for piece in model.tokenize(token)] if is_word else []
