"""Which labelled texts are learned from, and which are tested.

a file of its own     `--test`, `evaluation.probe.test`
a saved dataset       its split `train`, and the first of `TEST_SPLITS` that it has
all else              a fifth, chosen by the hash of the text: the same for any order, and copies of a text stay together
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from maskloom.data.hashing import make_key
from maskloom.tasks.labelled import Examples, splits_of

TEST_SHARE = 0.2
"""Share of the examples that is tested if nothing else is named."""
TEST_SPLITS = ("validation", "validation_matched", "dev", "test")
"""Splits that are tested, the first that there is: test splits often have no labels."""


def split_to_test(path: str | Path) -> str | None:
    """The split of a saved dataset to test, if it has `train` too."""
    splits = splits_of(path)
    return next((name for name in TEST_SPLITS if name in splits), None) if "train" in splits else None


def split_by_hash(examples: Examples, share: float, seed: int) -> tuple[Examples, Examples]:
    """Training and test examples. A text decides by its hash: copies of it, in other case or spacing too, stay together.

    Args:
        share: of the test examples, about.
    """
    pairs = examples.pairs or [""] * len(examples)
    keys = [
        make_key("probe", seed, *(" ".join(text.casefold().split()) for text in each))
        for each in zip(examples.texts, pairs, strict=True)
    ]
    tested = np.array(keys, np.uint64) < np.uint64(int(share * 2**64))
    return examples.take(np.flatnonzero(~tested).tolist()), examples.take(np.flatnonzero(tested).tolist())


def at_most(examples: Examples, count: int) -> Examples:
    """So many of the examples, in their order: those whose texts have the smallest hashes."""
    if len(examples) <= count:
        return examples
    keys = [make_key("probe", text) for text in examples.texts]
    chosen = sorted(range(len(examples)), key=lambda number: (keys[number], number))[:count]
    return examples.take(sorted(chosen))
