"""Examples as rows of a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from maskloom.errors import UserError
from maskloom.tasks.labelled import Examples
from maskloom.tasks.rows import IGNORED, encode, first_tokens, labels_of
from maskloom.tasks.target import target_of
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.byte_bpe import train_byte_bpe
from maskloom.tokenizers.loading import tokenizer_of_definition
from maskloom.tokenizers.writing import write_for_others

WORDS = ["river", "unstonelike", "\x7f", "of", "mountain"]
"""The second has several tokens, and a BERT-like normaliser removes the third."""
TAGS = ["B-X", "I-X", "O", "B-X", "O"]


def tagged(words: list[str], tags: list[str]) -> Examples:
    return Examples([" ".join(words)], None, [tags], "tags", "made", [1], words=[words])


@pytest.fixture(scope="module")
def wordpiece(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> AutoTokenizer:
    folder = tmp_path_factory.mktemp("wordpiece")
    write_for_others(folder, tokenizer, 64)
    return AutoTokenizer.from_pretrained(folder)


def test_the_first_token_of_each_word_has_its_tag(wordpiece: AutoTokenizer) -> None:
    examples = tagged(WORDS, TAGS)
    target = target_of(examples)
    rows = encode(wordpiece, examples, target, 64)
    (item,), (firsts,) = rows.items, rows.firsts
    tokens = wordpiece.convert_ids_to_tokens(item["input_ids"])
    starts = [place for place, token in enumerate(tokens) if not token.startswith(("##", "["))]
    assert [place for place in firsts if place is not None] == starts
    assert firsts[2] is None
    assert [label for label in item["labels"] if label != IGNORED] == [
        target.names.index(tag) for place, tag in zip(firsts, TAGS, strict=True) if place is not None
    ]
    assert len(tokens) > len(starts) + 2  # a word has several tokens, so some are left out

    outputs = np.array([[target.names.index("B-X")] * len(tokens)])
    assert labels_of(target, rows, outputs) == [["B-X", "B-X", "O", "B-X", "B-X"]]


def test_words_are_found_if_tokens_hold_the_blank(documents: list[str], tmp_path: Path) -> None:
    definition = train_byte_bpe(documents, 400, lowercase=False)
    write_for_others(tmp_path, tokenizer_of_definition(definition, "made"), 64)
    reader = AutoTokenizer.from_pretrained(tmp_path)
    examples = tagged(["stone", "é😀", "of", "rivers"], ["O", "B-X", "O", "O"])
    rows = encode(reader, examples, target_of(examples), 64)
    ids = rows.items[0]["input_ids"]
    begins = [place for place in rows.firsts[0] if place is not None]
    ends = [*begins[1:], len(ids) - 1]
    spelled = [reader.decode(ids[begin:end]).strip() for begin, end in zip(begins, ends, strict=True)]
    assert spelled == ["stone", "é😀", "of", "rivers"]


@settings(max_examples=40)
@given(st.lists(st.text("ab ", min_size=1), min_size=1), st.data())
def test_a_words_first_token_is_the_first_that_ends_in_it(words: list[str], data: st.DataObject) -> None:
    text = " ".join(words)
    cuts = sorted(data.draw(st.sets(st.integers(1, max(len(text) - 1, 1)))))
    offsets = [(0, 0), *zip([0, *cuts], [*cuts, len(text)], strict=True)]
    firsts = first_tokens(words, offsets)
    begin = 0
    for word, first in zip(words, firsts, strict=True):
        inside = [
            place for place, (start, end) in enumerate(offsets) if start < end and begin < end <= begin + len(word) + 1
        ]
        assert first == (inside[0] if inside else None)
        begin += len(word) + 1


def test_long_texts_are_cut_and_counted(wordpiece: AutoTokenizer) -> None:
    long = " ".join(["river"] * 30)
    examples = Examples(["stone", long, "of"], ["of", "stone", long], ["a", "b", "a"], "classes", "made", [1, 2, 3])
    rows = encode(wordpiece, examples, target_of(examples), 16)
    assert rows.cut == 2
    assert [len(item["input_ids"]) for item in rows.items] == [5, 16, 16]
    separators = [item["input_ids"].count(wordpiece.sep_token_id) for item in rows.items]
    assert separators == [2, 2, 2]
    assert [item["labels"] for item in rows.items] == [0, 1, 0]
    words = ["river"] * 30
    cut = encode(wordpiece, tagged(words, ["O", "B-X"] * 15), target_of(tagged(["a", "b"], ["O", "B-X"])), 16)
    assert cut.firsts[0][14:] == [None] * 16


def test_a_label_that_training_lacks_is_named(wordpiece: AutoTokenizer) -> None:
    target = target_of(Examples(["x", "y", "z"], None, ["a", "b", "a"], "classes", "train", [1, 2, 3]))
    test = Examples(["x"], None, ["c"], "classes", "test.csv", [7])
    with pytest.raises(
        UserError, match=r"test\.csv, line 7: the label 'c' is not in the training data, which has a, b"
    ):
        encode(wordpiece, test, target, 16)
