"""Examples as a model reads them: the ids of tokens and of labels.

Of tags, the first token of a word has the word's label, and all other tokens have IGNORED. Words are found by their places in
the text, so that a tokenizer that takes the blank into a token (RoBERTa's, ModernBERT's) needs no setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from maskloom.tasks.labelled import Examples
from maskloom.tasks.target import OUTSIDE, Target

IGNORED = -100
"""The label of a token that does not count in the loss."""


@dataclass(frozen=True)
class Rows:
    """Examples for transformers' Trainer.

    Attributes:
        items: for each example what the tokenizer gives (`input_ids`, `attention_mask`, ...), and `labels`.
        cut: how many examples were too long for the model.
        firsts: of tags, for each example the place of each word's first token; None for a word that has none.
    """

    items: list[dict[str, Any]]
    cut: int
    firsts: list[list[int | None]]


def encode(tokenizer: Any, examples: Examples, target: Target, max_tokens: int) -> Rows:
    """Turn examples into rows.

    Args:
        tokenizer: a fast tokenizer of transformers.
        max_tokens: of one row, with special tokens. Longer ones lose their end; of a pair, the longer text loses its.

    Raises:
        UserError: a label is unknown.
    """
    labels = target.ids_of(examples)
    items, firsts, cut = [], [], 0
    for number, text in enumerate(examples.texts):
        texts = (text,) if examples.pairs is None else (text, examples.pairs[number])
        row = tokenizer(*texts, return_offsets_mapping=examples.words is not None)
        if len(row["input_ids"]) > max_tokens:
            cut += 1
            row = tokenizer(
                *texts, truncation=True, max_length=max_tokens, return_offsets_mapping=examples.words is not None
            )
        item = dict(row)
        if examples.words is None:
            item["labels"] = labels[number]
        else:
            first = first_tokens(examples.words[number], item.pop("offset_mapping"))
            item["labels"] = [IGNORED] * len(item["input_ids"])
            for place, label in zip(first, labels[number], strict=True):
                if place is not None:
                    item["labels"][place] = label
            firsts.append(first)
        items.append(item)
    return Rows(items, cut, firsts)


def first_tokens(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[int | None]:
    """The place of each word's first token in a row of tokens.

    Args:
        words: they were joined with blanks.
        offsets: (begin, end) of each token in that text; special tokens have no length.
    """
    word_at = [number for number, word in enumerate(words) for _ in range(len(word) + 1)]  # the blank behind it, too
    firsts: list[int | None] = [None] * len(words)
    for place, (begin, end) in enumerate(offsets):
        if end > begin and firsts[word := word_at[end - 1]] is None:
            firsts[word] = place
    return firsts


def labels_of(target: Target, rows: Rows, outputs: Any) -> list[Any]:
    """The labels that a model's outputs stand for.

    Args:
        outputs: of classes, ids [N]; of numbers, [N] or [N, 1]; of tags, ids [N, S]. A word without a token is OUTSIDE, or the
            first tag if it is absent.
    """
    if target.kind == "numbers":
        return [float(value) for value in outputs.reshape(-1)]
    if target.kind == "classes":
        return [target.names[number] for number in outputs]
    unread = OUTSIDE if OUTSIDE in target.names else target.names[0]
    return [
        [unread if place is None else target.names[row[place]] for place in firsts]
        for row, firsts in zip(outputs, rows.firsts, strict=True)
    ]
