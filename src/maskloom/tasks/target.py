"""What a fine-tuned model predicts: classes, numbers or tags of words, and the figures that judge it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from maskloom.errors import UserError
from maskloom.redaction import brief
from maskloom.tasks.labelled import Examples, Kind
from maskloom.tasks.metrics import METRICS, f1_of, has_spans

OUTSIDE = "O"
"""The tag of a word outside of all spans."""


@dataclass(frozen=True)
class Target:
    """What is predicted.

    Attributes:
        names: classes or tags in the order of their ids; none for numbers.
        metrics: names of figures, the main one first.
        positive: the class whose F1 the figure `f1` is.
    """

    kind: Kind
    names: tuple[str, ...]
    metrics: tuple[str, ...]
    positive: str = ""

    @property
    def outputs(self) -> int:
        """Numbers that the model's head gives for a text, or for a token."""
        return len(self.names) or 1

    @property
    def title(self) -> str:
        if self.kind == "numbers":
            return "regression"
        return f"{len(self.names)} {self.kind}"

    def score(self, examples: Examples, predicted: Sequence[Any]) -> dict[str, float]:
        """The figures of predictions: a class, a number or a list of tags for each example."""
        functions: dict[str, Callable[..., float]] = {**METRICS, "f1": f1_of(self.positive)}
        return {name: functions[name](examples.labels, predicted) for name in self.metrics}

    def baseline(self, examples: Examples) -> tuple[str, float] | None:
        """The most frequent class or tag, and its share; None for numbers."""
        if self.kind == "numbers":
            return None
        (name, count), *_ = _counted(examples).most_common(1)
        return name, count / _counted(examples).total()

    def ids_of(self, examples: Examples) -> list[Any]:
        """The labels as a model takes them: an id, a number, or the ids of tags.

        Raises:
            UserError: a label is unknown.
        """
        if self.kind == "numbers":
            return list(examples.labels)
        ids = {name: number for number, name in enumerate(self.names)}
        found: list[Any] = []
        for number, label in enumerate(examples.labels):
            tags = label if isinstance(label, list) else [str(label)]
            unseen = next((tag for tag in tags if tag not in ids), None)
            if unseen is not None:
                some = ", ".join(self.names[:20]) + (", ..." if len(self.names) > 20 else "")
                raise UserError(
                    f"{examples.place(number)}: the label {brief(unseen)} is not in the training data, which has {some}. "
                    "Correct it, or add examples of it to the training data"
                )
            found.append([ids[tag] for tag in tags] if isinstance(label, list) else ids[tags[0]])
        return found


def target_of(examples: Examples) -> Target:
    """What examples ask for. The ids of classes and tags follow their names' order.

    Raises:
        UserError: there is nothing to learn: one class or number only, or a class for each text.
    """
    if examples.kind == "numbers":
        if len({*map(str, examples.labels)}) == 1:
            raise UserError(f"{examples.source}: each label is {examples.labels[0]}: there is nothing to learn")
        return Target("numbers", (), ("pearson", "spearman"))
    counts = _counted(examples)
    names = tuple(sorted(counts))
    if len(names) < 2:
        raise UserError(f"{examples.source}: each label is {brief(names[0])}: there is nothing to learn")
    if examples.kind == "tags":
        return Target("tags", names, ("span_f1", "tag_accuracy") if has_spans(names) else ("tag_accuracy",))
    if len(names) == len(examples):
        raise UserError(
            f"{examples.source}: each of {len(names)} examples has a label of its own, such as {brief(names[0])}. Name the right "
            "column with --label, or read numbers with --kind numbers"
        )
    return Target("classes", names, ("accuracy", "macro_f1"))


def _counted(examples: Examples) -> Counter[str]:
    """How often each class or tag occurs."""
    return Counter(tag for label in examples.labels for tag in (label if isinstance(label, list) else [str(label)]))
