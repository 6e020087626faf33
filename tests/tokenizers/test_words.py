"""Where words begin by the characters at both ends of tokens."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.tokenizers.words import ClassRule

CLASSES = ["the", "r", "é", "ß", "ж", "ひ", "한"], ["7", "42", "½"], ["-", "'", "。", "©", "🙂"], ["\n", "\t", "\xa0"]
CHINESE = ["中", "文字", "㐀", "\U00020000"]
MARKS = ["\u0301", "\u093f", "\ufe0f", "\u200d"]


def words_of(pieces: Sequence[str | bytes]) -> list[bool]:
    """Where a word begins in a row of these tokens."""
    vocabulary = list(dict.fromkeys(pieces))
    row = np.array([[vocabulary.index(piece) for piece in pieces]], np.int32)
    return ClassRule.of(vocabulary)(row, np.zeros(row.shape, bool))[0].tolist()


def encoded(pieces: Sequence[str]) -> list[bytes]:
    return [piece.encode() for piece in pieces]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["the", "ri", "ver"], "100"),
        ([" the", " ri", "ver", " "], "1101"),
        (["a", "b", "7", "7", "c"], "10101"),
        (["don", "'", "t"], "111"),
        (["...", "!", "x"], "101"),
        (["x", "\n", "\n", "    ", "y"], "11111"),
        (["x", " ", "y", "z", " ", "7", " ", "-", " ", "中", "文"], "11001010101"),
        (["x", " ", " y", " ", "  ", "z"], "111111"),
        ([" ", "\n", " ", "\t", "a"], "11111"),
        (["中", "文", "字"], "111"),
        (["中文", "a", "b", "文", "。", "。"], "110110"),
        (["中", "7", "中", " "], "1111"),
        (["caf", "e\u0301", "s"], "100"),
        (["cafe", "\u0301", "s"], "100"),
        (["नम", "\u0938\u094d", "\u0924", "\u0947", "7"], "10001"),
        (["❤", "\ufe0f", "!"], "101"),
        (["🙂", "🙂", "a"], "101"),
        (["ひら", "が", "な"], "100"),
        (["the", "", "end"], "111"),
    ],
)
def test_words_by_hand(pieces: list[str], expected: str) -> None:
    assert words_of(pieces) == [mark == "1" for mark in expected]
    assert words_of(encoded(pieces)) == [mark == "1" for mark in expected]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([b"a", "中".encode()[:2], "中".encode()[2:], "中文".encode()[:4], "文".encode()[1:]], "11010"),
        ([b"caf", "é".encode()[:1], "é".encode()[1:], b"s"], "1000"),
        ([b"7", "é".encode()[:1], "é".encode()[1:], b"7"], "1101"),
        (["สวัส".encode()[:4], "ส".encode()[1:2], "ว".encode()[2:], b"!"], "1001"),
        ([b"a", "“".encode()[:2], "“".encode()[2:], b"b"], "1100"),
        ([b"a ", "🙂".encode()[:1], "🙂".encode()[1:3], "🙂".encode()[3:], b" b"], "11001"),
    ],
)
def test_no_word_begins_inside_of_a_character(pieces: list[bytes], expected: str) -> None:
    """What follows bytes at the end of a character is taken for what follows a letter."""
    assert words_of(pieces) == [mark == "1" for mark in expected]


@pytest.mark.parametrize("before", [*itertools.chain(*CLASSES), *CHINESE])
@pytest.mark.parametrize("after", [*itertools.chain(*CLASSES), *CHINESE])
def test_a_word_begins_where_the_class_changes_and_at_chinese_characters(before: str, after: str) -> None:
    same = [kind for kind in CLASSES[:3] if before in kind and after in kind]
    assert words_of([before, after]) == [True, not same]
    for mark in MARKS:
        assert words_of([before, mark]) == [True, False]
        assert words_of([before + mark, after]) == [True, not same]


@given(st.text(max_size=20), st.data())
def test_bytes_of_a_text_give_what_its_characters_give(text: str, data: st.DataObject) -> None:
    """Wherever whole characters are cut."""
    cuts = sorted(data.draw(st.sets(st.integers(1, max(len(text) - 1, 1)))))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert words_of(pieces) == words_of(encoded(pieces))


@given(st.lists(st.binary(max_size=6), min_size=1, max_size=20))
def test_any_bytes_are_a_vocabulary(pieces: list[bytes]) -> None:
    assert words_of(pieces)[0]


def test_rows_of_a_batch_do_not_see_each_other() -> None:
    rule = ClassRule.of(["a", "b", "7"])
    rows = np.array([[0, 1, 2], [1, 2, 2]], np.int32)
    expected = [[True, False, True], [True, True, False]]
    assert rule(rows, np.zeros(rows.shape, bool)).tolist() == expected
    assert pickle.loads(pickle.dumps(rule))(rows, np.zeros(rows.shape, bool)).tolist() == expected
    assert rule.ends.nbytes == 3
