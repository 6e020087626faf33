"""Figures of predictions."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.tasks.metrics import (
    accuracy,
    f1_of,
    has_spans,
    macro_f1,
    matthews,
    pearson,
    span_f1,
    spans,
    spearman,
    tag_accuracy,
)

GOLD, SAID = ["a", "a", "a", "b", "b"], ["a", "a", "b", "b", "a"]
"""Of `b` one is found, one is missed, and one is wrongly said: precision, recall and F1 are 1/2. Of `a`, they are 2/3."""


def test_figures_of_classes_follow_their_definitions() -> None:
    assert accuracy(GOLD, SAID) == pytest.approx(3 / 5)
    assert f1_of("b")(GOLD, SAID) == pytest.approx(1 / 2)
    assert macro_f1(GOLD, SAID) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert macro_f1(["a", "a"], ["a", "b"]) == pytest.approx(2 / 3)  # `b` is not a class of the gold labels
    assert matthews(GOLD, SAID) == pytest.approx((1 * 2 - 1 * 1) / math.sqrt(2 * 2 * 3 * 3))
    assert matthews(GOLD, ["a"] * 5) == 0.0
    assert f1_of("b")(["a"], ["a"]) == 0.0


def test_correlations_follow_their_definitions() -> None:
    assert pearson([1, 2, 3], [2, 4, 6]) == pytest.approx(1.0)
    assert pearson([1, 2, 3], [1, 2, 9]) == pytest.approx(8 / math.sqrt(2 * 38))
    assert spearman([1, 2, 3, 4], [10, 100, 50, 1000]) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert pearson([1, 2], [3, 3]) == spearman([5, 5], [1, 2]) == 0.0


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O O", []),
        ("B-X I-X O B-Y", [("X", 0, 2), ("Y", 3, 4)]),
        ("B-X B-X I-X", [("X", 0, 1), ("X", 1, 3)]),
        ("I-X I-X O I-Y I-X", [("X", 0, 2), ("Y", 3, 4), ("X", 4, 5)]),  # IOB1: B only between two of one type
        ("B-X E-X I-X S-X S-X O", [("X", 0, 2), ("X", 2, 3), ("X", 3, 4), ("X", 4, 5)]),
        ("U-X B-a-b L-a-b", [("X", 0, 1), ("a-b", 1, 3)]),
    ],
)
def test_spans_are_those_of_the_conll_evaluation(tags: str, found: list[tuple[str, int, int]]) -> None:
    assert spans(tags.split()) == found


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.sampled_from("XY"))))
def test_spans_that_are_written_as_bio_are_read_again(parts: list[tuple[int, int, str]]) -> None:
    tags: list[str] = []
    wanted = []
    for outside, size, kind in parts:
        tags += ["O"] * outside
        wanted.append((kind, len(tags), len(tags) + size))
        tags += [f"B-{kind}"] + [f"I-{kind}"] * (size - 1)
    assert spans(tags) == wanted
    assert has_spans(tags) == bool(parts)
    assert span_f1([tags], [tags]) == float(bool(parts))


def test_a_span_is_right_if_its_type_and_both_ends_are() -> None:
    gold = [["B-X", "I-X", "O"], ["O", "B-Y", "O"]]
    said = [["B-X", "O", "O"], ["O", "B-Y", "B-Y"]]
    assert span_f1(gold, said) == pytest.approx(2 * 1 / (2 + 3))
    assert tag_accuracy(gold, said) == pytest.approx(4 / 6)
    assert not has_spans(["NOUN", "VERB"])
    assert not has_spans(["O", "B-X", "NOUN"])
