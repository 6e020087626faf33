"""What a task asks for."""

from __future__ import annotations

import pytest

from maskloom.errors import UserError
from maskloom.tasks.labelled import Examples, Kind, Labels
from maskloom.tasks.target import target_of


def examples(labels: Labels, kind: Kind) -> Examples:
    return Examples(["x"] * len(labels), None, labels, kind, "a.csv", list(range(1, len(labels) + 1)))


def test_labels_choose_the_figures() -> None:
    classes = target_of(examples(["b", "a", "b"], "classes"))
    assert (classes.names, classes.metrics, classes.outputs) == (("a", "b"), ("accuracy", "macro_f1"), 2)
    assert classes.baseline(examples(["b", "a", "b"], "classes")) == ("b", 2 / 3)
    numbers = target_of(examples([0.5, 1.0], "numbers"))
    assert (numbers.metrics, numbers.outputs, numbers.baseline(examples([0.5], "numbers"))) == (
        ("pearson", "spearman"),
        1,
        None,
    )
    assert target_of(examples([["O", "B-X"]], "tags")).metrics == ("span_f1", "tag_accuracy")
    assert target_of(examples([["NOUN", "VERB"]], "tags")).metrics == ("tag_accuracy",)


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        (["a", "a"], "classes", r"a\.csv: each label is 'a': there is nothing to learn"),
        ([2.0, 2.0], "numbers", r"a\.csv: each label is 2\.0: there is nothing to learn"),
        ([["O"], ["O"]], "tags", r"a\.csv: each label is 'O': there is nothing to learn"),
        (
            ["1", "2", "3"],
            "classes",
            "each of 3 examples has a label of its own, .* or read numbers with --kind numbers",
        ),
    ],
)
def test_labels_that_teach_nothing_are_refused(labels: Labels, kind: Kind, message: str) -> None:
    with pytest.raises(UserError, match=message):
        target_of(examples(labels, kind))


def test_a_tag_that_is_not_known_is_named() -> None:
    with pytest.raises(UserError, match=r"a\.csv, line 1: the label '' is not in the training data, which has B-X, O"):
        target_of(examples([["O", "B-X"]], "tags")).ids_of(examples([["O", ""]], "tags"))
