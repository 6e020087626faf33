"""Byte-level BPE: the kind of RoBERTa's, ModernBERT's and Llama's tokenizers (Radford et al., 2019).

A pattern cuts a text into pre-tokens. The bytes of a pre-token, each written as one visible character, are merged into tokens.
Every text has ids, so an unknown token is not needed. GPT-2's pattern is part of the library's `ByteLevel`; Llama 3 has its
own in a `Split`.

The characters at both ends of tokens tell where words begin (`words`). Pre-tokens do not: a Chinese clause is one pre-token.
Training follows RoBERTa: GPT-2's pattern, case kept, and its special tokens, which come first so that `<pad>` has a small id.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Encoder

from maskloom.errors import UserError
from maskloom.tokenizers import pipeline
from maskloom.tokenizers.base import Extension, TokenizerKind, WordRule
from maskloom.tokenizers.merges import MERGES, ROBERTA, SPECIAL_TOKENS, VOCABULARY, definition_of_merges
from maskloom.tokenizers.pipeline import Tree, added_tokens, steps_of
from maskloom.tokenizers.pretokens import pattern_of, stretches
from maskloom.tokenizers.words import ClassRule

VISIBLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
"""Bytes that stand for themselves in tokens. The others, white space among them, are written from U+0100 on."""
BYTE_OF = {chr(byte): byte for byte in VISIBLE} | {
    chr(0x100 + number): byte for number, byte in enumerate(sorted({*range(0x100)} - {*VISIBLE}))
}
"""Character of a token -> byte, GPT-2's alphabet."""
SIGN_OF = {chr(byte): sign for sign, byte in BYTE_OF.items() if byte < 0x80}
"""ASCII character -> how tokens write it: white space by a sign, letters as they are."""


def is_byte_bpe(tree: Tree) -> bool:
    """Whether the model is BPE, and a step before it writes bytes as characters."""
    steps = steps_of(tree.get("pre_tokenizer"), "pretokenizers")
    return tree["model"].get("type") == "BPE" and any(step.get("type") == "ByteLevel" for step in steps)


def train_byte_bpe(texts: Iterable[str], vocab_size: int, lowercase: bool | None) -> str:
    """Train a vocabulary with RoBERTa's pipeline.

    Args:
        vocab_size: largest number of ids, the special tokens and the 256 bytes included.
        lowercase: lower-case the text. None: no.
    """
    least = len(SPECIAL_TOKENS) + len(BYTE_OF)
    if vocab_size <= least:
        raise UserError(
            f"--vocab-size {vocab_size} leaves no id beside the {len(SPECIAL_TOKENS)} special tokens and {len(BYTE_OF)} bytes "
            f"of byte-level BPE: give more than {least}"
        )
    made = Encoder(models.BPE())
    if lowercase:
        made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        # "a <mask>" is then one token behind "a", and stands for the next word with its blank.
        special_tokens=[AddedToken(token, lstrip=token == ROBERTA.mask, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=list(BYTE_OF),
        show_progress=False,
    )
    made.train_from_iterator(iter(texts), trainer)
    first, last = ((token, SPECIAL_TOKENS.index(token)) for token in (ROBERTA.cls, ROBERTA.sep))
    made.post_processor = processors.RobertaProcessing(last, first, trim_offsets=True, add_prefix_space=False)
    return str(made.to_str())


def word_rule(tree: Tree, vocabulary: Mapping[str, int]) -> WordRule:
    """The rule of `words`."""
    added = {token["content"] for token in added_tokens(tree)}
    pieces: list[str | bytes] = [b""] * (max(vocabulary.values()) + 1)
    for token, number in vocabulary.items():
        pieces[number] = token if token in added else bytes_of(token)
    return ClassRule.of(pieces)


def bytes_of(token: str) -> str | bytes:
    """The bytes that a token stands for. A token with a character beyond the alphabet stands for its text."""
    if BYTE_OF.keys() >= set(token):
        return bytes(map(BYTE_OF.__getitem__, token))
    return token


def shown(token: str) -> str:
    """The text that a token stands for, with signs for white space (`Ġ`). One that is not whole characters is left as it is."""
    given = bytes_of(token)
    try:
        text = given if isinstance(given, str) else given.decode("utf-8")
    except UnicodeDecodeError:
        return token
    return "".join(SIGN_OF.get(character, character) for character in text)


def cut_points(tree: Tree, roles: frozenset[str]) -> re.Pattern[str] | None:
    """At blanks between other characters. So also for a `Split` whose pattern is known here: as in GPT-2's, a blank is only at
    the front of a pre-token."""
    if pattern_of(tree) is not None:
        tree = tree | {"pre_tokenizer": {"type": "ByteLevel"}}
    return pipeline.cut_points(tree, roles)


def word_of(tree: Tree, pretoken: str) -> str | None:
    """A pre-token of a blank and letters."""
    word = bytes_of(pretoken)
    text = word.decode("utf-8", "replace") if isinstance(word, bytes) else word
    return pretoken if len(text) > 2 and text[0] == " " and text[1:].isalpha() else None


def extended(tree: Tree, words: Sequence[str], first: int) -> Tree:
    """More entries of the vocabulary, without merges, and the switch by which a pre-token that is an entry becomes it as a whole
    (`ignore_merges`, as Llama 3 has it). No other text is split otherwise than before.

    Merges that make the word would need entries for what lies between its pieces and the word, and would act in longer words.

    Raises:
        UserError: an old token, as a pre-token, has other ids by its merges than its own. The switch would change these.
    """
    model = tree["model"]
    if not model.get("ignore_merges"):
        apart = _tokens_without_merges(tree)
        if apart:
            raise UserError(
                f"this tokenizer has {len(apart):,} tokens that its merges do not make, such as {apart[0]!r}. To take words as a "
                "whole would change how they are read: it cannot be extended"
            )
    vocabulary = model["vocab"] | {word: first + place for place, word in enumerate(words)}
    return tree | {"model": model | {"vocab": vocabulary, "ignore_merges": True}}


def _tokens_without_merges(tree: Tree) -> list[str]:
    """The tokens that a text can have as a pre-token, and that merges do not make. RoBERTa's `madeupword0000` is not among them:
    the pattern cuts its digits off."""
    old = Encoder.from_str(json.dumps(tree, ensure_ascii=False))
    added = {token["content"] for token in added_tokens(tree)}
    found = []
    for token in tree["model"]["vocab"]:
        if token in added or len(old.model.tokenize(token)) == 1:
            continue
        text = bytes_of(token)
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        if [pretoken for pretoken, _ in old.pre_tokenizer.pre_tokenize_str(text)] == [token]:
            found.append(token)
    return found


def settings_for_hugging_face(tree: Tree) -> dict[str, object]:
    """Whether a text gets a blank in front. transformers 4 reads this key, and not the definition. Without it, it adds none."""
    step = tree.get("pre_tokenizer") or {}
    return {"add_prefix_space": step.get("add_prefix_space", True)} if step.get("type") == "ByteLevel" else {}


BYTE_BPE = TokenizerKind(
    "byte-bpe",
    is_of_kind=is_byte_bpe,
    train=train_byte_bpe,
    word_rule=word_rule,
    cut_points=cut_points,
    stretches=stretches,
    files={VOCABULARY: definition_of_merges},
    extension=Extension(word_of, extended),
    needed_beside={VOCABULARY: (MERGES,)},
    settings=settings_for_hugging_face,
    shown=shown,
    vocab_multiple=64,
    has_token_types=False,
)
