"""The probe: what vectors hold is found, what they do not hold is not, and the examples that are tested choose nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import pytest

from maskloom.errors import UserError
from maskloom.tasks.encoding import Floats
from maskloom.tasks.labelled import Examples, Kind, Labels
from maskloom.tasks.probe import bag_of_words, features_of, probe


def examples(texts: list[str], labels: Labels, pairs: list[str] | None = None, kind: Kind = "classes") -> Examples:
    return Examples(texts, pairs, labels, kind, "file", list(range(1, len(texts) + 1)))


def signs(texts: Sequence[str]) -> Floats:
    """Vectors that hold whether a text begins with "a", beside noise."""
    rng = np.random.RandomState(len(texts))
    first = np.array([[text.startswith("a")] for text in texts])
    return np.concatenate([first, rng.standard_normal((len(texts), 4)), np.zeros((len(texts), 1))], 1).astype(
        np.float32
    )


def some(count: int, start: int = 0) -> tuple[list[str], list[str]]:
    """Texts of which a quarter begins with "a", and labels that say which."""
    texts = [f"{'a' if number % 4 == 0 else 'b'} {number}" for number in range(start, start + count)]
    return texts, [text[0] for text in texts]


def test_what_the_vectors_hold_is_found() -> None:
    found = probe(signs, examples(*some(80)), examples(*some(40, 80)), seeds=(0, 1))
    assert found == {"accuracy": 1.0, "macro_f1": 1.0, "most_frequent": 0.75, "examples": 40.0}
    assert found == probe(signs, examples(*some(80)), examples(*some(40, 80)), seeds=(0, 1))


def test_what_they_do_not_hold_is_not() -> None:
    """Labels that have nothing to do with the vectors: 200 coins. Five deviations are 0.18."""
    texts, _ = some(600)
    labels = [str(coin) for coin in np.random.RandomState(0).randint(2, size=600)]
    found = probe(signs, examples(texts[:400], labels[:400]), examples(texts[400:], labels[400:]))
    assert abs(found["accuracy"] - 0.5) < 0.18


def test_classes_that_are_rare_or_only_tested() -> None:
    """An example that no fold can hold is learned from; a class that was never seen counts as missed."""
    texts, labels = some(40)
    test = examples(["a 1", "c 1"], ["a", "c"])
    found = probe(signs, examples([*texts, "d"], [*labels, "d"]), test)
    assert found["accuracy"] == 0.5
    assert found["macro_f1"] <= 0.5
    assert found["most_frequent"] == 0.0


def test_pairs_are_told_by_difference_and_product() -> None:
    vectors = {"x": [1.0, 2.0], "y": [3.0, -1.0]}

    def encode(texts: Sequence[str]) -> Floats:
        return np.array([vectors[text] for text in texts], np.float32)

    assert features_of(encode, examples(["x"], ["?"], ["y"])).tolist() == [[2.0, 3.0, 3.0, -2.0]]


def test_the_words_alone() -> None:
    texts = [f"{'good' if number % 2 else 'bad'} film number {number}" for number in range(40)]
    labels = [text.split()[0] for text in texts]
    assert bag_of_words(examples(texts[:30], labels[:30]), examples(texts[30:], labels[30:]))["accuracy"] == 1.0
    nothing = bag_of_words(examples(["x", "y", "z"], ["a", "b", "a"]), examples(["w"], ["a"]))
    assert nothing["accuracy"] == 1.0  # no word is there twice: the most frequent class


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (examples([], []), examples(["a"], ["a"]), "no example is left to train with"),
        (examples(["a"], ["a"]), examples([], []), "no example is left to test with"),
        (examples(["a"], [1.5], kind="numbers"), examples(["a"], ["a"]), "labels are numbers; a probe needs classes"),
        (examples(["a"], ["a"]), examples(["a"], ["a"]), "every training example has the label 'a'"),
        (
            examples(["a", "b"], ["1", "2"]),
            examples(["a"], ["1.0"]),
            "none of its labels, such as '1.0', is one of file, such as '1'",
        ),
        (examples(["a", "b"], ["a", "b"], ["x", "y"]), examples(["a"], ["a"]), "one has pairs"),
    ],
)
def test_what_cannot_be_probed_is_refused(train: Examples, test: Examples, message: str) -> None:
    with pytest.raises(UserError, match=message):
        probe(signs, train, test)


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "sklearn" or name.startswith("sklearn.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=r"pip install 'maskloom\[tasks\]'"):
        probe(signs, examples(*some(8)), examples(*some(8)))
