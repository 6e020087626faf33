"""Words as ranges of characters, and masks that follow from text and seed alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.scoring.words import chosen_words, draws, sentences, word_bytes, words_of


def words(text: str) -> list[str]:
    return [text[start:end] for start, end in words_of(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't go, it's 3.14!", ["Don't", "go", ",", "it's", "3", ".", "14", "!"]),
        ("a_b c-d ...", ["a_b", "c", "-", "d", "..."]),
        ("हिन्दी में", ["हिन्दी", "में"]),  # its vowel signs are marks
        ("nai\u0308ve", ["nai\u0308ve"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),  # a joiner inside a word
        ("❤️🎉 x", ["❤️🎉", "x"]),
        ("中文，没有。", ["中文", "，", "没有", "。"]),
        ("'quoted'", ["'", "quoted", "'"]),
        ("", []),
        (" \n\t\u3000", []),
    ],
)
def test_what_a_word_is(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40))
def test_all_but_white_space_is_in_one_word(text: str) -> None:
    spans = words_of(text)
    assert "".join(words(text)) == "".join(text.split())
    assert (spans[1:, 0] >= spans[:-1, 1]).all()
    assert (spans[:, 1] > spans[:, 0]).all()


def test_masks_follow_from_text_and_seed() -> None:
    text = "tree " * 1000
    spans = words_of(text)
    first = chosen_words(text, spans, 0.15, 0)
    assert (first == chosen_words(text, spans, 0.15, 0)).all()
    others = [chosen_words(text, spans, 0.15, 1), chosen_words(text + ".", spans, 0.15, 0)]
    for other in others:
        assert (first != other).any()
    assert not (first & ~chosen_words(text, spans, 0.4, 0)).any()  # a higher rate masks more, and the same


def test_as_many_are_masked_as_asked_for() -> None:
    count, rate = 20_000, 0.15
    spread = math.sqrt(rate * (1 - rate) / count)
    assert abs(float((draws("text", count, 3) < rate).mean()) - rate) < 4 * spread


def test_bytes_are_those_of_the_text() -> None:
    text = "Ångström 😀"
    assert word_bytes(text, words_of(text)).tolist() == [len("Ångström".encode()), 4]


def test_sentences() -> None:
    text = 'One is here. Two (is) here? "Three."\nFour goes on\nin a line\n\nFive'
    spans = words_of(text)
    found = [text[spans[first, 0] : spans[end - 1, 1]] for first, end in sentences(text, spans)]
    assert found == ["One is here.", "Two (is) here?", '"Three."', "Four goes on\nin a line", "Five"]
    assert sentences("", np.empty((0, 2), np.int64)) == []
