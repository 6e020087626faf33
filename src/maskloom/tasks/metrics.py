"""Figures that judge predictions. scikit-learn and scipy give most of them; spans of BIO tags are found here.

Every figure is better if it is larger, and is a number for any input: a correlation with a constant is 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Span = tuple[str, int, int]
"""Type, first word, and the word behind the last one."""

TAG = re.compile(r"[BIESLU]-.+")
"""A tag of BIO or BIOES, also spelled BILOU."""


def matthews(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """Matthews' correlation coefficient."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(gold, predicted))


def accuracy(gold: Sequence[str], predicted: Sequence[str]) -> float:
    return float(np.mean([is_right == said for is_right, said in zip(gold, predicted, strict=True)]))


def macro_f1(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """The mean of F1 over the classes that `gold` has."""
    from sklearn.metrics import f1_score

    return float(f1_score(gold, predicted, labels=np.unique(gold), average="macro", zero_division=0.0))


def f1_of(positive: str) -> Callable[[Sequence[str], Sequence[str]], float]:
    """F1 of one class."""
    from sklearn.metrics import f1_score

    return lambda gold, predicted: float(
        f1_score([label == positive for label in gold], [label == positive for label in predicted], zero_division=0.0)
    )


def pearson(gold: Sequence[float], predicted: Sequence[float]) -> float:
    return _correlation(np.asarray(gold, np.float64), np.asarray(predicted, np.float64))


def spearman(gold: Sequence[float], predicted: Sequence[float]) -> float:
    from scipy.stats import rankdata

    return _correlation(rankdata(gold), rankdata(predicted))


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    if np.ptp(one) == 0.0 or np.ptp(other) == 0.0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def tag_accuracy(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """The share of words whose tag is right."""
    return accuracy([tag for row in gold for tag in row], [tag for row in predicted for tag in row])


def span_f1(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """F1 of spans: one is right if its type and both ends are."""
    wanted = {(row, *span) for row, tags in enumerate(gold) for span in spans(tags)}
    found = {(row, *span) for row, tags in enumerate(predicted) for span in spans(tags)}
    return 2 * len(wanted & found) / (len(wanted) + len(found)) if wanted or found else 0.0


def spans(tags: Sequence[str]) -> list[Span]:
    """The spans of a row of tags, as the CoNLL 2003 evaluation reads them.

    A span begins with B (or S, U), and also with any tag of another type than the open span's, or behind E (or L, S, U).
    """
    found: list[Span] = []
    kind, begin, is_closed = "", 0, True
    for place, tag in enumerate(tags):
        prefix, _, name = tag.partition("-")
        if is_closed or not name or prefix in "BSU" or name != kind:
            if kind:
                found.append((kind, begin, place))
            kind, begin = name, place
        is_closed = not name or prefix in "ESLU"
    return [*found, (kind, begin, len(tags))] if kind else found


def has_spans(names: Sequence[str]) -> bool:
    """Whether tags of these names mark spans: all but `O` are of BIO or BIOES."""
    marked = [name for name in names if name != "O"]
    return bool(marked) and all(TAG.fullmatch(name) for name in marked)


METRICS: Mapping[str, Callable[..., float]] = {
    each.__name__: each for each in (matthews, accuracy, macro_f1, pearson, spearman, tag_accuracy, span_f1)
}
"""By name. `f1` is missing: it is of one class (`f1_of`)."""

TITLES = {
    "matthews": "Matthews correlation",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "f1": "F1",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "tag_accuracy": "accuracy of tags",
    "span_f1": "F1 of spans",
}
"""What people read."""
