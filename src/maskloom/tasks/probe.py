"""What a frozen encoder knows of labels: logistic regression over the vectors of texts, by scikit-learn.

    texts -> encode -> [N, F] -> standardised -> logistic regression, C by cross-validation -> accuracy, macro F1

Of a pair, the features are |u - v| and u * v of its two vectors (Conneau et al., 2017, "Supervised Learning of Universal
Sentence Representations"). The strength of the regularisation, C, is chosen on the training examples alone. So the examples
that are tested choose nothing.

Shapes: N examples, D size of a vector, F features.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskloom.data.hashing import make_key
from maskloom.errors import UserError
from maskloom.tasks.labelled import Examples

Floats = NDArray[np.float32]
Encode = Callable[[Sequence[str]], Floats]
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""C of scikit-learn's LogisticRegression over standardised features; smaller is stronger."""
FOLDS = 3
MOST_TO_CHOOSE = 3000
"""Training examples that the choice of C looks at: it costs more than the fit itself, and more change it little."""
MOST_ROUNDS = 300


def probe(encode: Encode, train: Examples, test: Examples, seeds: Sequence[int] = (0,)) -> dict[str, float]:
    """How well labels are read off the vectors of texts.

    Args:
        encode: texts to vectors, float32 [N, D].
        seeds: of the examples that choose C, and their folds. Figures are means over them.

    Returns:
        of the test examples `accuracy`, `macro_f1` (mean over the classes that they have), and `most_frequent`: the accuracy of
        always answering the class that is most frequent in the training examples; and `examples`, their number.

    Raises:
        UserError: scikit-learn is missing, labels are not classes, or there are fewer than two classes.
    """
    check(train, test)
    fitted = [fit(features(encode, train), train.labels, features(encode, test), test.labels, seed) for seed in seeds]
    return {name: float(np.mean([each[name] for each in fitted])) for name in fitted[0]}


def check(train: Examples, test: Examples) -> None:
    """Raises UserError if the examples cannot be probed."""
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
    if (train.pairs is None) != (test.pairs is None):
        raise UserError(f"{train.source} and {test.source}: one has pairs of texts, the other single texts")


def features(encode: Encode, examples: Examples) -> Floats:
    """float32 [N, F]: of single texts their vectors, F = D; of pairs |u - v| and u * v, F = 2 D."""
    first = encode(examples.texts)
    if examples.pairs is None:
        return first
    second = encode(examples.pairs)
    return np.concatenate([np.abs(first - second), first * second], axis=1)


def fit(train: Any, train_labels: Sequence[Any], test: Any, test_labels: Sequence[Any], seed: int) -> dict[str, float]:
    """Fit on the features of the training examples and score those of the test.

    Args:
        train, test: float32 [N, F], or sparse matrices of that shape.
        seed: of the examples that choose C, and their folds.

    Returns:
        as `probe`.
    """
    with _needs_sklearn():
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import f1_score
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

    truth, known = np.asarray(test_labels), np.asarray(train_labels)
    dense = isinstance(train, np.ndarray)

    def classifier(strength: float) -> Any:
        # Sparse features keep their zeros: they are scaled and not centred.
        scaler = StandardScaler(with_mean=dense)
        return make_pipeline(scaler, LogisticRegression(C=strength, max_iter=MOST_ROUNDS, tol=1e-3))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a weak C may need more rounds; it is then not the best
        strength = _choose_strength(classifier, train, known, seed)
        guessed = classifier(strength).fit(train, known).predict(test)
    names, counts = np.unique(known, return_counts=True)
    return {
        "accuracy": float(np.mean(guessed == truth)),
        "macro_f1": float(f1_score(truth, guessed, labels=np.unique(truth), average="macro", zero_division=0.0)),
        "most_frequent": float(np.mean(truth == names[counts.argmax()])),
        "examples": float(len(truth)),
    }


def _choose_strength(classifier: Callable[[float], Any], features: Any, labels: NDArray[Any], seed: int) -> float:
    """The C that predicts best in cross-validation; the strongest of equals."""
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    names, counts = np.unique(labels, return_counts=True)
    common = np.flatnonzero(np.isin(labels, names[counts >= FOLDS]))  # a class needs an example in each fold
    if len(np.unique(labels[common])) < 2:
        return STRENGTHS[len(STRENGTHS) // 2]
    chosen = np.random.RandomState(seed).permutation(common)[:MOST_TO_CHOOSE]
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    scores = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a rare class may have too few examples left for each fold
        for strength in STRENGTHS:
            score = float(np.mean(cross_val_score(classifier(strength), features[chosen], labels[chosen], cv=folds)))
            scores.append(score if math.isfinite(score) else -1.0)
    return STRENGTHS[int(np.argmax(scores))]


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


@contextlib.contextmanager
def _needs_sklearn() -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise UserError("a probe needs scikit-learn: pip install 'maskloom[tasks]'") from None
