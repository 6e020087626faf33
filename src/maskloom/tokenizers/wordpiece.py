"""WordPiece (Schuster & Nakajima, 2012) and BERT's pipeline: all that is known of `##`, `vocab.txt` and BERT's special tokens.

A token that continues a word begins with `##`. BERT's normalizer and pre-tokenizer look at characters and words, and
never across white space. So a text is encoded by its stretches between blanks, most of which were seen before. A stretch
too long to encode at once is cut before ASCII punctuation, and before what the normalizer puts blanks around. These are
words of their own.

A `vocab.txt` gets the definition of Hugging Face's `BertTokenizer`, with what its `tokenizer_config.json` says of case,
accents and Chinese characters. It is made here, and not by that class, so that another version of transformers never
makes another one: a run knows its tokenizer by it.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer
from tokenizers.processors import TemplateProcessing

from maskloom.errors import UserError
from maskloom.tokenizers import pipeline
from maskloom.tokenizers.base import TOKENIZING, Bools, Extension, Int32s, TokenizerKind, WordRule
from maskloom.tokenizers.beside import FLAGS, added_beside, check_roles, definition_of, switches_beside
from maskloom.tokenizers.pipeline import Tree, own_tokens, part_types
from maskloom.tokenizers.roles import BERT, SETTINGS, ends_template, read_object

SPECIAL_TOKENS = tuple(BERT.by_role().values())
"""BERT's spellings of the roles, in the order of its vocabulary."""
ROLE_KEYS = {f"{role}_token": token for role, token in BERT.by_role().items()}
WORD_PREFIX = "##"
PIPELINE = ["BertNormalizer", "BertPreTokenizer", "WordPiece"]
BLANKS = "\u00a0\u3000"  # blanks beside U+0020 that BERT's normalizer keeps as such
CJK = "\u4e00-\u9fff\u3001\u3002\uff0c"  # of all that BERT splits, what long texts without a blank have much of
WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
"""Unicode's White_Space, which is not what `str.rstrip` takes: the tokenizers library reads a vocabulary by it."""
SWITCHES = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
"""What `BertTokenizer` may be told, and its defaults."""
SWITCHES_IN_TREE = dict(zip(SWITCHES, ("lowercase", "strip_accents", "handle_chinese_chars"), strict=True))


def is_word_piece(tree: Tree) -> bool:
    """Whether the model is WordPiece, or another one whose tokens begin with `##` inside of a word."""
    return tree["model"].get("type") == "WordPiece" or _marks_words(tree)


def train_word_piece(texts: Iterable[str], vocab_size: int, lowercase: bool | None) -> str:
    """Train a vocabulary with BERT's normalizer and pre-tokenizer.

    Two trainings on one text can give two vocabularies: the library breaks ties by the order of a randomised hash map
    (huggingface/tokenizers#1794). What a run depends on is therefore the file, known by its fingerprint.

    Args:
        vocab_size: largest number of ids, the five special tokens included.
        lowercase: lower-case and strip accents. None: yes, as bert-base-uncased does.
    """
    if vocab_size <= len(SPECIAL_TOKENS):
        raise UserError(f"--vocab-size {vocab_size} leaves no id beside the {len(SPECIAL_TOKENS)} special tokens")
    trainer = BertWordPieceTokenizer(lowercase=lowercase is not False)
    trainer.train_from_iterator(
        iter(texts), vocab_size=vocab_size, min_frequency=2, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )
    trainer.post_processor = TemplateProcessing(
        single=f"{BERT.cls} $A {BERT.sep}",
        pair=f"{BERT.cls} $A {BERT.sep} $B:1 {BERT.sep}:1",
        special_tokens=[(token, trainer.token_to_id(token)) for token in (BERT.cls, BERT.sep)],
    )
    return str(trainer.to_str())


@dataclass(frozen=True)
class StartsByToken:
    """The rule of where words begin, if a token tells by itself.

    Attributes:
        starts: bool [vocab_size].
    """

    starts: Bools

    def __call__(self, tokens: Int32s, starts: Bools) -> Bools:
        return self.starts.take(tokens)


def word_rule(tree: Tree, vocabulary: Mapping[str, int]) -> WordRule | None:
    """A word begins at every token without `##`."""
    if not _marks_words(tree):
        return None
    starts = np.ones(max(vocabulary.values()) + 1, dtype=bool)
    starts[[number for token, number in vocabulary.items() if token.startswith(WORD_PREFIX)]] = False
    return StartsByToken(starts)


def cut_points(tree: Tree, roles: frozenset[str]) -> re.Pattern[str] | None:
    """In BERT's pipeline, before a word of one character; in others, as for any kind."""
    if not _is_local(tree, roles):
        return pipeline.cut_points(tree, roles)
    own = own_tokens(tree, roles)
    held = set("".join(token["content"] for token in own))
    # The underscore is part of words to tokens that are looked for as whole words only.
    marks = re.escape("".join(mark for mark in string.punctuation if mark != "_" and mark not in held))
    cjk = CJK if tree["normalizer"].get("handle_chinese_chars") and not own else ""
    return re.compile(f"(?=[{BLANKS}{marks}{cjk}])")


def stretches(tree: Tree, roles: frozenset[str]) -> Callable[[str], list[str]] | None:
    """In BERT's pipeline, what stands between blanks, line ends and tabs."""
    return split_at_white_space if _is_local(tree, roles) else None


def split_at_white_space(text: str) -> list[str]:
    """The text cut at blanks, line ends and tabs, none of which is left."""
    return text.replace("\n", " ").replace("\t", " ").replace("\r", " ").split(" ")


def oldest_version(tree: Tree, roles: frozenset[str]) -> int:
    """Version 1 of tokenizing gave the same ids for BERT's pipeline, if its five roles are its only added tokens."""
    is_plain = part_types(tree) == PIPELINE and all(
        token["content"] in roles and bool(token.get("special")) for token in pipeline.added_tokens(tree)
    )
    return 1 if is_plain else TOKENIZING


def settings_for_hugging_face(tree: Tree) -> dict[str, object]:
    """What `BertTokenizer` has to know if someone names it instead of the class that is written."""
    normalizer = tree.get("normalizer") or {}
    if normalizer.get("type") != "BertNormalizer":
        return {}
    return {name: normalizer.get(key) for name, key in SWITCHES_IN_TREE.items()}


def word_of(tree: Tree, pretoken: str) -> str | None:
    """A pre-token of letters: a token without `##`."""
    return pretoken if len(pretoken) > 1 and pretoken.isalpha() else None


def extended(tree: Tree, words: Sequence[str], first: int) -> Tree:
    """More entries of the vocabulary. WordPiece takes the longest entry that a word begins with. So a longer word that begins
    with a new one is split otherwise than before, and never one that holds it further inside.

    Raises:
        UserError: the model is not WordPiece.
    """
    model = tree["model"]
    if model.get("type") != "WordPiece":
        raise UserError(
            f"a model of type {model.get('type')} cannot be extended by words: only WordPiece, BPE and Unigram can"
        )
    vocabulary = model["vocab"] | {word: first + place for place, word in enumerate(words)}
    return tree | {"model": model | {"vocab": vocabulary}}


def _marks_words(tree: Tree) -> bool:
    model = tree["model"]
    default = WORD_PREFIX if model.get("type") == "WordPiece" else None
    return bool(model.get("continuing_subword_prefix", default) == WORD_PREFIX)


def _is_local(tree: Tree, roles: frozenset[str]) -> bool:
    """Whether the ids of a text are those of its stretches between blanks, line ends and tabs, one after the other.

    So it is for BERT's normalizer and pre-tokenizer, unless a token was added that can hold white space or take some from
    its sides. One that is looked for in normalized text must be ASCII: the normalizer puts blanks around other characters.
    """
    return part_types(tree) == PIPELINE and all(
        not (token.get("lstrip") or token.get("rstrip"))
        and not any(map(str.isspace, token["content"]))
        and (token["content"].isascii() or not token.get("normalized"))
        for token in own_tokens(tree, roles)
    )


def definition_of_vocabulary(file: Path, content: bytes) -> str:
    """The definition of `BertTokenizer` for a `vocab.txt` with one token a line; the number of its line is a token's id.

    As for that class, lines end at a line feed and nowhere else, and white space behind a token (a carriage return, too) is
    not part of it. Of a token that is there twice the last line counts. A line without a token has an id that is never used;
    a byte order mark belongs to no token.

    Raises:
        UserError: BERT's roles are not in it, or what stands beside it cannot be followed.
    """
    check_roles(file, ROLE_KEYS, [SETTINGS])
    settings = read_object(file.parent / SETTINGS)
    lines = content.decode("utf-8").removeprefix("\ufeff").split("\n")
    vocabulary = {token: number for number, line in enumerate(lines) if (token := line.rstrip(WHITE_SPACE))}
    absent = [role for role in SPECIAL_TOKENS if role not in vocabulary]
    if absent:
        raise UserError(
            f"{file} has no {', '.join(absent)}: a vocab.txt has one token a line, with {', '.join(SPECIAL_TOKENS)} among them"
        )
    flags = dict.fromkeys(FLAGS, False)
    added: list[Tree] = [{"id": vocabulary[role], "content": role, **flags, "special": True} for role in SPECIAL_TOKENS]
    added += added_beside(file, settings, vocabulary, SPECIAL_TOKENS)
    switches = switches_beside(file, settings, SWITCHES)
    return definition_of(
        added,
        normalizer={
            "type": "BertNormalizer",
            "clean_text": True,
            **{SWITCHES_IN_TREE[name]: value for name, value in switches.items()},
        },
        pre_tokenizer={"type": "BertPreTokenizer"},
        post_processor=ends_template(BERT, vocabulary),
        decoder={"type": "WordPiece", "prefix": WORD_PREFIX, "cleanup": True},
        model={
            "type": "WordPiece",
            "unk_token": BERT.unk,
            "continuing_subword_prefix": WORD_PREFIX,
            "max_input_chars_per_word": 100,
            "vocab": vocabulary,
        },
    )


WORDPIECE = TokenizerKind(
    "wordpiece",
    is_of_kind=is_word_piece,
    train=train_word_piece,
    word_rule=word_rule,
    cut_points=cut_points,
    stretches=stretches,
    oldest_version=oldest_version,
    extension=Extension(word_of, extended),
    files={"vocab.txt": definition_of_vocabulary},
    settings=settings_for_hugging_face,
)
