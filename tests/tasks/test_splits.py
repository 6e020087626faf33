"""Which examples are tested."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from maskloom.tasks.labelled import Examples
from maskloom.tasks.splits import at_most, split_by_hash, split_to_test


def examples(texts: list[str], pairs: list[str] | None = None) -> Examples:
    return Examples(texts, pairs, ["a"] * len(texts), "classes", "file", list(range(1, len(texts) + 1)))


def test_copies_stay_together() -> None:
    texts = [text for number in range(500) for text in (f"Text {number}", f"text  {number} ")]
    train, test = split_by_hash(examples(texts), 0.2, 0)
    assert sorted(train.numbers + test.numbers) == list(range(1, 1001))
    assert not {" ".join(text.lower().split()) for text in train.texts} & {
        " ".join(text.lower().split()) for text in test.texts
    }
    assert abs(len(test) / 1000 - 0.2) < 5 * (0.2 * 0.8 / 500) ** 0.5
    assert split_by_hash(examples(texts), 0.2, 1)[1].numbers != test.numbers


def test_both_texts_of_a_pair_count() -> None:
    _, test = split_by_hash(examples(["x"] * 200, [str(number) for number in range(200)]), 0.5, 0)
    assert 0 < len(test) < 200


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("train", "test", "dev"), "dev"),
        (("test", "validation", "train"), "validation"),
        (("train", "test"), "test"),
        (("train",), None),
        (("test",), None),
    ],
)
def test_a_split_with_labels_is_tested(names: tuple[str, ...], expected: str | None, tmp_path: Path) -> None:
    part = datasets.Dataset.from_dict({"text": ["x"], "label": [1]})
    datasets.DatasetDict(dict.fromkeys(names, part)).save_to_disk(tmp_path / "saved")
    assert split_to_test(tmp_path / "saved") == expected


def test_a_sample_keeps_the_order_and_does_not_depend_on_it() -> None:
    texts = [str(number) for number in range(50)]
    some = at_most(examples(texts), 10)
    assert some.numbers == sorted(some.numbers)
    assert sorted(at_most(examples(texts[::-1]), 10).texts) == sorted(some.texts)
    assert at_most(examples(texts), 50).texts == texts
