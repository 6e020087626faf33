"""Unigram (Kudo, 2018) behind Metaspace, as in SentencePiece: the kind of XLM-R, CamemBERT, ALBERT and others.

Metaspace writes a blank as `▁`, which begins the token behind it. The characters at both ends of tokens tell which other tokens
begin a word (`words`). A vocabulary is a list of tokens and their scores. Special tokens are in it; `pipeline` keeps text from
becoming one of these.

Training follows XLM-R: its special tokens and its pre-tokenizer. Text is normalised as SentencePiece does by default: NFKC, no
control characters, and blanks for line ends and tabs (`nmt_nfkc`). As there, the rarest characters get no token.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Encoder

from maskloom.errors import UserError
from maskloom.tokenizers import pipeline
from maskloom.tokenizers.base import UNUSED, Extension, TokenizerKind, WordRule, faults_of
from maskloom.tokenizers.pipeline import Tree, own_tokens, steps_of
from maskloom.tokenizers.words import ClassRule

BOS, PAD, EOS, UNK, MASK = SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
"""XLM-R's special tokens in their order. There, the mask is the last token of all."""
COVERAGE = 0.9995  # share of a text's characters that get a token; SentencePiece's default
BLANK = "▁"  # how Metaspace writes a blank, unless a file says otherwise
LEAD = 0.1  # by which a new word's score is above that of its pieces, for each cut between two of them
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
LETTERS = [chr(number) for number in range(0x30, 0x530) if chr(number).isalpha() or chr(number).isdigit()]
"""Letters and digits of Latin, Greek, Cyrillic and the scripts between them."""
LOCAL_NORMALIZERS = frozenset(
    {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "Precompiled", "Strip", "Replace"}
)


def is_unigram(tree: Tree) -> bool:
    """Whether the model is Unigram, and the pre-tokenizer writes blanks as Metaspace does."""
    return tree["model"].get("type") == "Unigram" and _blank_of(tree) is not None


def train_unigram(texts: Iterable[str], vocab_size: int, lowercase: bool | None) -> str:
    """Train a vocabulary, with XLM-R's special tokens.

    The texts are held in memory. Two trainings on one text can give two vocabularies, as for WordPiece.

    Args:
        vocab_size: largest number of ids, the five special tokens included.
        lowercase: lower-case the text. None: no, as XLM-R.
    """
    if vocab_size <= len(SPECIAL_TOKENS):
        raise UserError(f"--vocab-size {vocab_size} leaves no id beside the {len(SPECIAL_TOKENS)} special tokens")
    kept = list(texts)
    to_blanks = str.maketrans(dict.fromkeys(rare_characters(kept), " "))
    made = Encoder(models.Unigram())
    steps = [normalizers.Nmt(), normalizers.NFKC(), *([normalizers.Lowercase()] if lowercase else [])]
    made.normalizer = normalizers.Sequence(steps)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    made.decoder = decoders.Metaspace()
    mask = AddedToken(MASK, lstrip=True, normalized=False, special=True)
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=[*SPECIAL_TOKENS[:-1], mask], unk_token=UNK, show_progress=False
    )
    with faults_of(f"no Unigram vocabulary of --vocab-size {vocab_size} can be made of this text"):
        made.train_from_iterator((text.translate(to_blanks) for text in kept), trainer)
    made.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}",
        pair=f"{BOS} $A {EOS} {EOS} $B {EOS}",
        special_tokens=[(token, SPECIAL_TOKENS.index(token)) for token in (BOS, EOS)],
    )
    return json.dumps(_without_doubles(json.loads(made.to_str())), ensure_ascii=False)


def _without_doubles(tree: Tree) -> Tree:
    """The definition with each token once. Text that spells a special token can be learnt as a second token of that name, whose
    id the library would then give to the first."""
    vocabulary = tree["model"]["vocab"]
    specials, learnt = vocabulary[: len(SPECIAL_TOKENS)], vocabulary[len(SPECIAL_TOKENS) :]
    apart = [piece for piece in learnt if piece[0] not in SPECIAL_TOKENS and not piece[0].startswith(UNUSED)]
    added = [token | {"id": SPECIAL_TOKENS.index(token["content"])} for token in tree["added_tokens"]]
    model = tree["model"] | {"vocab": [*specials, *apart]}
    return tree | {"model": model, "added_tokens": sorted(added, key=lambda token: int(token["id"]))}


def rare_characters(texts: Iterable[str]) -> list[str]:
    """The rarest characters, which together are less than 1 - `COVERAGE` of the texts."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    left = (1 - COVERAGE) * counts.total()
    rare = []
    for character in sorted(counts, key=lambda character: (counts[character], character)):
        left -= counts[character]
        if left <= 0:
            break
        rare.append(character)
    return rare


def word_rule(tree: Tree, vocabulary: Mapping[str, int]) -> WordRule | None:
    """The rule of character classes. A token for one byte of a character, as `<0xE4>`, counts as that byte."""
    blank = _blank_of(tree) or BLANK
    has_bytes = tree["model"].get("byte_fallback") is True
    pieces: list[str | bytes] = [""] * (max(vocabulary.values()) + 1)
    for token, number in vocabulary.items():
        byte = BYTE_TOKEN.fullmatch(token) if has_bytes else None
        pieces[number] = bytes.fromhex(byte[1]) if byte else token.replace(blank, " ")
    return ClassRule.of(pieces)


def word_of(tree: Tree, pretoken: str) -> str | None:
    """The letters that follow the sign for a blank, with the sign. Punctuation behind them becomes tokens of its own."""
    blank = _blank_of(tree) or BLANK
    letters = "".join(itertools.takewhile(str.isalpha, pretoken.removeprefix(blank)))
    is_whole = len(letters) > 1 and not pretoken[len(blank) + len(letters) : len(blank) + len(letters) + 1].isalnum()
    return blank + letters if pretoken.startswith(blank) and is_whole else None


def extended(tree: Tree, words: Sequence[str], first: int) -> Tree:
    """More entries of the vocabulary. A word's score is a little above the sum of the scores of the tokens that it was split
    into: it becomes one token, and other texts stay as they were if they can.

    No score is below the lowest so far, which the score for unknown characters follows.
    """
    model = tree["model"]
    old = Encoder.from_str(json.dumps(tree, ensure_ascii=False))
    scores = dict(model["vocab"])
    lowest = min(scores.values())
    entries = []
    for word in words:
        pieces = [token.value for token in old.model.tokenize(word)]
        entries.append([word, max(lowest, sum(scores[piece] for piece in pieces) + LEAD * (len(pieces) - 1))])
    return tree | {"model": model | {"vocab": [*model["vocab"], *entries]}}


def cut_points(tree: Tree, roles: frozenset[str]) -> re.Pattern[str] | None:
    """At blanks, as for any kind; if `pipeline` does not know the normalizer, at blanks between letters.

    Such a blank has two letters before it and one behind it. Cut there, a text is normalized in parts as it is as a whole, by
    each of `LOCAL_NORMALIZERS`. NFKC and others join a mark to the character before it, never across a blank. `Precompiled`
    works on one grapheme at a time, and both letters and the blank are graphemes. It can map a letter to anything: so a
    text is not cut beside letters that it drops or turns into blanks.
    """
    return pipeline.cut_points(tree, roles) or _between_letters(tree, roles)


def _between_letters(tree: Tree, roles: frozenset[str]) -> re.Pattern[str] | None:
    steps = steps_of(tree.get("normalizer"), "normalizers")
    # Tables of characters are asked about letters, not about what another table makes of them.
    tables = sum(step.get("type") == "Precompiled" for step in steps)
    splits = pipeline.splits_at_blanks(tree | {"normalizer": None})
    if not splits or tables > 1 or not all(_is_local(step, tree) for step in steps):
        return None
    if any(_may_cross(token) for token in own_tokens(tree, roles)):
        return None
    letters = "".join(map(re.escape, _plain_letters(tree)))
    return re.compile(f"(?<=[{letters}][{letters}])(?= [{letters}])") if letters else None


def _is_local(step: Tree, tree: Tree) -> bool:
    """Whether a normalizer gives the parts of a text what it gives the whole."""
    if step.get("type") == "Strip":  # Metaspace has to put back the blank that it takes from the front of a part
        return not step.get("strip_left") or _metaspace(tree).get("prepend_scheme", "always") == "always"
    if step.get("type") == "Replace":
        pattern = step.get("pattern") or {}
        if pattern.get("Regex") == " {2,}":
            return step.get("content") in (" ", _blank_of(tree))
        text = pattern.get("String")
        return isinstance(text, str) and bool(text) and not any(map(str.isspace, text))
    return step.get("type") in LOCAL_NORMALIZERS


def _may_cross(token: Tree) -> bool:
    """Whether an added token can take a blank from a text, or is looked for in normalized text."""
    takes = token.get("lstrip") or token.get("rstrip") or any(map(str.isspace, token["content"]))
    return bool(takes or token.get("normalized"))


def _plain_letters(tree: Tree) -> Sequence[str]:
    """The letters that the normalizer neither drops nor turns into blanks, and treats beside a blank as it does alone."""
    plain: Tree = {"type": "WordLevel", "vocab": {}, "unk_token": ""}
    bare = {**tree, "model": plain, "added_tokens": [], "post_processor": None, "decoder": None}
    normalizer = Encoder.from_str(json.dumps(bare)).normalizer
    if normalizer is None:
        return LETTERS
    alone = {letter: normalizer.normalize_str(letter) for letter in LETTERS}
    return [
        letter
        for letter, made in alone.items()
        if made
        and not any(map(str.isspace, made))
        and normalizer.normalize_str(f"{letter} {letter}") == f"{made} {made}"
    ]


def _metaspace(tree: Tree) -> Tree:
    """The last pre-tokenizer, if it is Metaspace."""
    steps = steps_of(tree.get("pre_tokenizer"), "pretokenizers")
    return steps[-1] if steps and steps[-1].get("type") == "Metaspace" else {}


def _blank_of(tree: Tree) -> str | None:
    """The sign that stands for a blank; None without Metaspace."""
    step = _metaspace(tree)
    return str(step.get("replacement", BLANK)) if step else None


UNIGRAM = TokenizerKind(
    "unigram",
    is_of_kind=is_unigram,
    train=train_unigram,
    word_rule=word_rule,
    cut_points=cut_points,
    extension=Extension(word_of, extended),
    vocab_multiple=64,
    train_bytes=16 << 20,  # the library takes a minute of a core for 4 MiB, and more if words have no blanks
    has_token_types=False,
)
