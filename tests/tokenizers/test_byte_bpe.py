"""Byte-level BPE: ids as those of Hugging Face for the same file, words by classes of characters, and training."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as HFTokenizer

from maskloom.errors import UserError
from maskloom.tokenizers import base as module
from maskloom.tokenizers import pipeline
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.byte_bpe import BYTE_OF, bytes_of
from maskloom.tokenizers.loading import tokenizer_of_definition
from maskloom.tokenizers.merges import SPECIAL_TOKENS
from maskloom.tokenizers.pretokens import GPT2, LLAMA3
from maskloom.tokenizers.training import train_tokenizer
from tests.conftest import WORDS

TEXTS = [
    " ".join(WORDS),
    "The patient's 1,234 rivers; they'll learn\n\n    def f(x):\n        return x  # 中文字。 naïve Ünïcode",
    "ÀÉ à é  two  blanks\n\tx 2026-11-28 こんにちは привет 🙂🙂",
] * 6
ATOMS = [
    *(" ", "  ", "    ", "\n", "\n\n", "\t", "\r\n", "\xa0", "\u3000", "\x85", "\u2028", "\u200b", "\x1c", "\x00"),
    *("e\u0301", "\u0301", "\ufe0f", "\u200d", "ﬁ", "İ", "ſ", "'s", "'S", "'ſ", "'ll", "'Ve", "'", "’s", "don't"),
    *(
        "中",
        "文。",
        "한국",
        "ひら",
        "Ä",
        "é",
        "ж",
        "½",
        "²",
        "٣",
        "1234567",
        "🙂",
        "👩‍👩",
        "𝐀",
        "𝟘",
        "\U00020000",
        "\U0001e900",
    ),
    *("-", ",", "...", "_", "Ġ", "▁", "<mask>", "<s>", "</s>", "<pad>", "|||IP|||", "the", " river", "Stone", "a", "B"),
]
texts = st.lists(st.sampled_from(ATOMS) | st.characters(exclude_categories=["Cs"]), max_size=25).map("".join)


def made(
    pre_tokenizer: pre_tokenizers.PreTokenizer,
    normalizer: normalizers.Normalizer | None = None,
    specials: tuple[str, ...] = SPECIAL_TOKENS,
    **model: object,
) -> HFTokenizer:
    tokenizer = HFTokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[AddedToken(token, lstrip="mask" in token.lower(), normalized=False) for token in specials],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def byte_level(**more: object) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False} | more)


def split(pattern: str, **more: object) -> pre_tokenizers.PreTokenizer:
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level(use_regex=False, **more)]
    return pre_tokenizers.Sequence(steps)


def modern_bert() -> HFTokenizer:
    """Its added tokens: runs of blanks, from the longest on, and marks of what was taken out."""
    tokenizer = made(byte_level(), normalizers.NFC(), ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"))
    tokenizer.add_tokens(["|||IP|||", *(AddedToken(" " * size, normalized=True) for size in range(24, 1, -1))])
    return tokenizer


DEFINITIONS: dict[str, Callable[[], HFTokenizer]] = {
    "RoBERTa": lambda: made(byte_level()),
    "RoBERTa, blank in front": lambda: made(byte_level(add_prefix_space=True)),
    "ModernBERT": modern_bert,
    "Llama 3": lambda: made(split(LLAMA3), ignore_merges=True),
    "Llama 3, blank in front": lambda: made(split(LLAMA3, add_prefix_space=True)),
    "GPT-2's pattern in a split": lambda: made(split(GPT2), normalizers.NFC()),
    "another pattern": lambda: made(split(r"\p{L}+|[^\p{L}]+")),
    "lower case": lambda: made(byte_level(), normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])),
}
_made: dict[str, tuple[Tokenizer, HFTokenizer]] = {}


def pair(name: str) -> tuple[Tokenizer, HFTokenizer]:
    """Ours, and Hugging Face's of the same file."""
    if name not in _made:
        definition = DEFINITIONS[name]().to_str()
        theirs = HFTokenizer.from_str(definition)
        theirs.encode_special_tokens = True  # a literal special token stays text, as in ours
        _made[name] = tokenizer_of_definition(definition, name), theirs
    return _made[name]


@pytest.mark.parametrize("name", DEFINITIONS)
@settings(max_examples=60, deadline=None)
@given(several=st.lists(texts, max_size=4), most=st.integers(1, 40))
def test_hugging_face_gives_the_same_ids(name: str, several: list[str], most: int) -> None:
    """Of short texts and long ones, which are cut, with literal special tokens in them."""
    ours, theirs = pair(name)
    expected = [theirs.encode(text, add_special_tokens=False).ids for text in several]
    for _ in range(2):  # what is unknown, and known
        assert [ids.tolist() for ids in ours.encode(several)] == expected
    with patch.object(module, "MAX_ENCODE_CHARS", most):
        assert [ids.tolist() for ids in ours.encode(several)] == expected


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_literal_special_token_stays_text(name: str) -> None:
    ours, _ = pair(name)
    roles = {ours.pad_id, ours.cls_id, ours.sep_id, ours.mask_id}
    for role in ours.roles.spellings:
        for text in (role, f"the {role} of", f"a{role}b", f"{role}{role}"):
            (ids,) = ours.encode([text])
            assert not roles & set(ids.tolist())
            read = ours.decode(ids.tolist()).replace(" ", "")
            assert read == (text.lower() if name == "lower case" else text).replace(" ", "")


@pytest.mark.parametrize("name", DEFINITIONS)
def test_definitions_are_of_the_kind_and_cut_where_that_is_proved(name: str) -> None:
    ours, _ = pair(name)
    assert (ours.kind, ours.knows_words) == ("byte-bpe", True)
    assert ours._cut_points is (None if name == "another pattern" else pipeline.AT_BLANKS)


def test_a_known_pattern_that_is_used_otherwise_is_cut_nowhere() -> None:
    tree = json.loads(DEFINITIONS["Llama 3"]().to_str())
    steps = tree["pre_tokenizer"]["pretokenizers"]
    for step, change in ((0, {"behavior": "Removed"}), (0, {"invert": True}), (1, {"use_regex": True})):
        changed = [found | (change if number == step else {}) for number, found in enumerate(steps)]
        other = tree | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": changed}}
        assert tokenizer_of_definition(json.dumps(other), "changed")._cut_points is None


def test_characters_of_tokens_stand_for_the_bytes_of_the_library() -> None:
    """Its own alphabet, and the bytes that its decoder makes of each character."""
    assert set(BYTE_OF) == set(pre_tokenizers.ByteLevel.alphabet())
    text = "".join(map(chr, [*range(0x20, 0x800), 0x4E2D, 0x1F642]))  # all bytes that UTF-8 can hold but five
    (found,) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    assert bytes_of(found[0]) == text.encode()
    assert bytes_of("<é 中>") == "<é 中>"


def words_in(tokenizer: Tokenizer, text: str) -> list[str]:
    """The words of a text, by ids."""
    (ids,) = tokenizer.encode([text])
    begins = np.flatnonzero(tokenizer.starts_word(ids[None], np.zeros((1, len(ids)), bool))[0])
    parts = np.split(ids, begins[1:])
    return [tokenizer.decode(part.tolist()) for part in parts]


@pytest.mark.parametrize("name", ["RoBERTa", "ModernBERT"])
def test_words_begin_at_blanks_at_other_classes_and_at_chinese_characters(name: str) -> None:
    tokenizer, _ = pair(name)
    text = "The unpatient rivers' 12345 naïve山水。ok привет!!"
    expected = ["The", " unpatient", " rivers", "'", " 12345", " naïve", "山", "水", "。", "ok", " привет", "!!"]
    for asked in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):
        assert words_in(asked, text) == expected


def test_a_run_of_blanks_and_a_line_end_are_words() -> None:
    tokenizer, _ = pair("ModernBERT")
    assert words_in(tokenizer, "the\n      river") == ["the", "\n", "      ", "river"]


def test_a_trained_vocabulary_has_robertas_specials_and_every_text(documents: list[str]) -> None:
    tokenizer = train_tokenizer(iter(documents), 400, kind="byte-bpe", multiple=1)
    assert tokenizer.kind == "byte-bpe"
    assert len(SPECIAL_TOKENS) + 256 < tokenizer.vocab_size <= 400
    assert [tokenizer.token(number) for number in range(5)] == list(SPECIAL_TOKENS)
    roles = (tokenizer.cls_id, tokenizer.pad_id, tokenizer.sep_id, tokenizer.unk_id, tokenizer.mask_id)
    assert roles == (0, 1, 2, 3, 4)
    assert not tokenizer.is_maskable[:5].any()
    assert tokenizer.is_maskable[5:].all()
    for text in [*documents[:20], *TEXTS, "\x00\u0301 Éa"]:
        assert tokenizer.decode(tokenizer.encode([text])[0].tolist()) == text


def test_the_mask_stands_for_a_word_with_its_blank(documents: list[str]) -> None:
    tokenizer = train_tokenizer(iter(documents), 400, kind="byte-bpe", multiple=1)
    theirs = HFTokenizer.from_str(tokenizer.definition)
    text = "the quiet <mask> reads"
    ids = tokenizer.encode_with_masks(text)
    assert ids == theirs.encode(text).ids
    assert ids[0] == tokenizer.cls_id and ids[-1] == tokenizer.sep_id
    quiet, reads = (tokenizer.encode([part])[0].tolist() for part in ("the quiet", " reads"))
    assert ids[1:-1] == [*quiet, tokenizer.mask_id, *reads]


def test_case_is_kept_unless_asked_otherwise() -> None:
    for lowercase, is_kept in ((None, True), (False, True), (True, False)):
        tokenizer = train_tokenizer(["River RIVER river"] * 10, 300, lowercase, "byte-bpe")
        first, second = (ids.tolist() for ids in tokenizer.encode(["RIVER", "river"]))
        assert (first != second) is is_kept


def test_a_vocabulary_has_room_beside_the_bytes() -> None:
    with pytest.raises(UserError, match="--vocab-size 261 leaves no id beside the 5 special tokens and 256 bytes"):
        train_tokenizer(["the river"], 261, kind="byte-bpe", multiple=1)
    assert train_tokenizer(["the river"] * 5, 262, kind="byte-bpe", multiple=1).vocab_size == 262
