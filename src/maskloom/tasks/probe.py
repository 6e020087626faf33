"""What a frozen encoder knows of labels: a logistic regression learns them from the vectors of texts.

    texts -> encode -> [N, F] -> standardised -> logistic regression, C by cross-validation -> accuracy, macro F1

A pair has two vectors, u and v. Its features are |u - v| and u * v, as in InferSent (Conneau et al., 2017). C, how freely the
weights may grow, is chosen on the training part alone. The test part chooses nothing.

Shapes: N examples, D size of a vector, F features.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskloom.errors import UserError
from maskloom.tasks.labelled import Examples
from maskloom.tasks.metrics import accuracy, macro_f1

Floats = NDArray[np.float32]
Encode = Callable[[Sequence[str]], Floats]
STRENGTHS = (3e-4, 3e-3, 3e-2, 3e-1)
"""Values of C that are tried. With a small one, weights stay small. Each feature has mean 0 and deviation 1."""
FOLDS = 3
MOST_TO_CHOOSE = 2000
"""Texts of the training part that choose C: the choice costs more than the fit, and more of them change it little."""
MOST_ROUNDS = 300
TOLERANCE = 1e-3
SMALLEST = 1e-6  # a feature that deviates less is constant but for rounding
SPARSE_STRENGTHS = (1.0, 3.0, 10.0, 30.0)
"""The same for TF-IDF, which is taken as it is."""
MOST_WORDS = 20_000


def probe(encode: Encode, train: Examples, test: Examples, seeds: Sequence[int] = (0,)) -> dict[str, float]:
    """How well labels are read off the vectors of texts.

    Args:
        encode: texts to vectors, float32 [N, D].
        seeds: of the examples that choose C, and their folds. Figures are means over them.

    Returns:
        figures of the test part. `accuracy`. `macro_f1`, a mean over its classes. `most_frequent`, the accuracy of always
        guessing the class that `train` has most of. `examples`, their number.

    Raises:
        UserError: scikit-learn is missing, or the labels are not two or more classes.
    """
    check(train, test)
    fitted = [
        fit(features_of(encode, train), train.labels, features_of(encode, test), test.labels, seed) for seed in seeds
    ]
    return {name: float(np.mean([each[name] for each in fitted])) for name in fitted[0]}


def check(train: Examples, test: Examples) -> None:
    """Raises UserError if scikit-learn is missing, or the examples cannot be probed."""
    if importlib.util.find_spec("sklearn") is None:
        raise UserError("a probe needs scikit-learn: pip install 'maskloom[tasks]'")
    for examples, role in ((train, "train"), (test, "test")):
        if not len(examples):
            raise UserError(f"{examples.source}: no example is left to {role} with: it needs more of them")
        if examples.kind != "classes":
            raise UserError(f"{examples.source}: labels are {examples.kind}; a probe needs classes")
    classes = sorted({str(label) for label in train.labels})
    if len(classes) < 2:
        raise UserError(
            f"{train.source}: every training example has the label '{classes[0]}': a probe needs two classes"
        )
    if not {str(label) for label in test.labels} & set(classes):
        raise UserError(
            f"{test.source}: none of its labels, such as '{test.labels[0]}', is one of {train.source}, such as '{classes[0]}': "
            "spell them alike"
        )
    if (train.pairs is None) != (test.pairs is None):
        raise UserError(f"{train.source} and {test.source}: one has pairs of texts, the other single texts")


def features_of(encode: Encode, examples: Examples) -> Floats:
    """float32 [N, F]: of single texts their vectors, F = D; of pairs |u - v| and u * v, F = 2 D."""
    first = encode(examples.texts)
    if examples.pairs is None:
        return first
    second = encode(examples.pairs)
    return np.concatenate([np.abs(first - second), first * second], axis=1)


def bag_of_words(train: Examples, test: Examples, seed: int = 0) -> dict[str, float]:
    """What the words tell without an encoder: as `probe`, over TF-IDF of words and of pairs of words.

    It learns a weight for each word and class. So it is not a lower bound: with many labels it may beat a small encoder.
    """
    check(train, test)
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, max_features=MOST_WORDS, sublinear_tf=True)

    def joined(examples: Examples) -> list[str]:
        if examples.pairs is None:
            return examples.texts
        return [f"{text}\n{other}" for text, other in zip(examples.texts, examples.pairs, strict=True)]

    try:
        known = vectorizer.fit_transform(joined(train))
    except ValueError:  # no word is in two texts
        return fit(np.zeros((len(train), 1)), train.labels, np.zeros((len(test), 1)), test.labels, seed)
    return fit(known, train.labels, vectorizer.transform(joined(test)), test.labels, seed)


def fit(train: Any, train_labels: Sequence[Any], test: Any, test_labels: Sequence[Any], seed: int) -> dict[str, float]:
    """Fit on the features of the training examples and score those of the test.

    Args:
        train, test: [N, F]. An array is brought to mean 0 and deviation 1; a sparse matrix is taken as it is.
        seed: of the examples that choose C, and their folds.

    Returns:
        as `probe`.
    """
    truth, known = np.asarray(test_labels), np.asarray(train_labels)
    if isinstance(train, np.ndarray):
        mean, deviation = train.mean(0), train.std(0)
        train, test = (((part - mean) / np.maximum(deviation, SMALLEST)).astype(np.float32) for part in (train, test))
        strengths: tuple[float, ...] = STRENGTHS
    else:
        strengths = SPARSE_STRENGTHS
    strength = _choose_strength(strengths, train, known, seed)
    guessed = _fitted(strength, train, known).predict(test).tolist()
    names, counts = np.unique(known, return_counts=True)
    return {
        "accuracy": accuracy(test_labels, guessed),
        "macro_f1": macro_f1(test_labels, guessed),
        "most_frequent": float(np.mean(truth == names[counts.argmax()])),
        "examples": float(len(truth)),
    }


def _fitted(strength: float, features: Any, labels: NDArray[Any]) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the figures no longer change by then
        return LogisticRegression(C=strength, max_iter=MOST_ROUNDS, tol=TOLERANCE).fit(features, labels)


def _choose_strength(strengths: Sequence[float], features: Any, labels: NDArray[Any], seed: int) -> float:
    """The C that guesses best over the folds; of equals the smallest."""
    from sklearn.model_selection import StratifiedKFold

    chosen = np.random.RandomState(seed).permutation(len(labels))[:MOST_TO_CHOOSE]
    names, counts = np.unique(labels[chosen], return_counts=True)
    chosen = chosen[np.isin(labels[chosen], names[counts >= FOLDS])]  # a class needs an example in each fold
    features, labels = features[chosen], labels[chosen]
    if len(np.unique(labels)) < 2:
        return strengths[len(strengths) // 2]
    hits = np.zeros(len(strengths))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(features, labels)
    for learned, held in folds:
        for place, strength in enumerate(strengths):
            model = _fitted(strength, features[learned], labels[learned])
            hits[place] += np.sum(model.predict(features[held]) == labels[held])
    return strengths[int(np.argmax(hits))]
