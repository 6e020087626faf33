"""Pre-tokens found by `re` are those of the tokenizers library, for every character that Unicode can have."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as HFTokenizer

from maskloom.tokenizers.loading import tokenizer_of_definition
from maskloom.tokenizers.pretokens import GPT2, LLAMA3, PreTokens, is_nfc, pattern_of, stretches

from .test_byte_bpe import DEFINITIONS, byte_level, made, pair, split, texts

CODES = [
    *(*range(0x3500), *range(0x9F00, 0xAC10), *range(0xD780, 0xD800), *range(0xE000, 0xE010), *range(0xF8F0, 0x10000)),
    *(*range(0x10000, 0x20000, 7), *range(0x20000, 0x30000, 501), *range(0xE0000, 0xE0200, 7), 0x10FFFF),
]
"""Code points without surrogates and without the inside of large blocks. Of those beyond U+FFFF some."""


def theirs(pattern: str, text: str) -> list[str]:
    return [found for found, _ in pre_tokenizers.Split(Regex(pattern), "isolated").pre_tokenize_str(text)]


@pytest.mark.parametrize("pattern", [GPT2, LLAMA3], ids=["GPT-2", "Llama 3"])
def test_every_character_is_of_the_librarys_class(pattern: str) -> None:
    """Also those that are newer than this version of Python."""
    cut = PreTokens(pattern, (), is_nfc=False)
    for start in range(0, len(CODES), 4096):
        text = "".join(f"'{character}a{character}1 {character}!" for character in map(chr, CODES[start : start + 4096]))
        assert cut(text) == theirs(pattern, text)


@pytest.mark.parametrize("pattern", [GPT2, LLAMA3], ids=["GPT-2", "Llama 3"])
@settings(max_examples=100, deadline=None)
@given(text=texts)
def test_texts_are_cut_as_the_library_does_it(pattern: str, text: str) -> None:
    cut = pickle.loads(pickle.dumps(PreTokens(pattern, (), is_nfc=False)))
    assert cut(text) == theirs(pattern, text)


@settings(max_examples=100, deadline=None)
@given(text=texts)
def test_a_text_that_nfc_would_change_is_known(text: str) -> None:
    assert is_nfc(text) is (normalizers.NFC().normalize_str(text) == text)
    whole = PreTokens(GPT2, (), is_nfc=True)(text)
    assert "".join(whole) == text
    assert len(whole) == 1 or is_nfc(text)


def test_no_character_is_changed_by_nfc_unknown_to_us() -> None:
    """By itself, and behind letters that it may join with."""
    nfc = normalizers.NFC()
    for start in range(0, len(CODES), 512):
        for before in ("", "a", "\u1100", "\uac00", "\u09c7", "\u0301"):
            text = "\n".join(before + chr(code) for code in CODES[start : start + 512])
            if nfc.normalize_str(text) != text:
                assert not is_nfc(text)


FAST = {"RoBERTa", "ModernBERT", "Llama 3", "Llama 3, blank in front", "GPT-2's pattern in a split"}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_what_is_known_to_the_letter_is_cut(name: str) -> None:
    ours, _ = pair(name)
    assert isinstance(ours._stretches, PreTokens) is (name in FAST)


def test_pre_tokens_are_looked_up() -> None:
    ours, _ = pair("RoBERTa")
    ours._known.clear()
    ours.encode(["the river's  stones, the river"])
    assert set(ours._known) == {"the", " river", "'s", " ", " stones", ",", " the"}


def test_added_tokens_are_found_first_and_the_longest_of_them() -> None:
    cut = pair("ModernBERT")[0]._stretches
    assert isinstance(cut, PreTokens)
    assert cut("a   b |||IP|||x" + " " * 26 + "y") == ["a", "   ", "b", " ", "|||IP|||", "x", " " * 24, "  ", "y"]


ADDED = [AddedToken("ab", normalized=False), AddedToken("b c", normalized=True), AddedToken("a", special=True), "bc"]


@settings(max_examples=100, deadline=None)
@given(text=st.text("abc ", max_size=30))
def test_added_tokens_of_both_rounds_are_found_as_the_library_does_it(text: str) -> None:
    ours, other = _with_added()
    assert ours._stretches
    assert ours.encode([text])[0].tolist() == other.encode(text, add_special_tokens=False).ids


_made: list = []


def _with_added() -> tuple:
    if not _made:
        definition = made(byte_level(), normalizers.NFC())
        definition.add_tokens(ADDED)
        _made[:] = [tokenizer_of_definition(definition.to_str(), "added"), HFTokenizer.from_str(definition.to_str())]
    return _made[0], _made[1]


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_tokens_that_mind_what_is_beside_them_are_left_to_the_library(flag: str) -> None:
    tree = json.loads(made(byte_level()).to_str())
    assert stretches(tree, frozenset()) is None  # the mask strips, if it is not known as a role
    roles = frozenset(token["content"] for token in tree["added_tokens"])
    assert stretches(tree, roles)
    token = tree["added_tokens"][0] | {"id": 600, "content": "[P]"}
    tree["added_tokens"].append(token)
    assert stretches(tree, roles)
    token[flag] = True
    assert stretches(tree, roles) is None
    token |= {flag: False, "content": "e\u0301"}
    assert stretches(tree, roles) is None


def test_a_pattern_is_known_to_the_letter_or_not_at_all() -> None:
    tree = json.loads(made(split(LLAMA3)).to_str())
    assert pattern_of(tree) == LLAMA3
    step = tree["pre_tokenizer"]["pretokenizers"][0]
    for pattern in ({"Regex": LLAMA3.replace("{1,3}", "")}, {"String": LLAMA3}, "x", None):
        step["pattern"] = pattern
        assert pattern_of(tree) is None
    assert pattern_of({"pre_tokenizer": None, "model": {}}) is None
