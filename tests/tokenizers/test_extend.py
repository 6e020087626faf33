"""A tokenizer is extended by words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from maskloom.errors import UserError
from maskloom.tokenizers import TOKENIZERS
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.extend import NewWord, extended, find_words, is_extension, pieces_of_new
from maskloom.tokenizers.loading import load_tokenizer, tokenizer_of_definition
from maskloom.tokenizers.training import train_tokenizer
from maskloom.tokenizers.writing import write_for_others

KINDS = [name for name, kind in TOKENIZERS.items() if kind.extension]
WORD, RARE = "riverstones", "stonerivers"
DOMAIN = [f"The {WORD}, then {WORD} again. {RARE}"] * 10 + [f"one more {WORD}"]


@pytest.fixture(scope="module", params=KINDS)
def old(request: pytest.FixtureRequest, documents: list[str]) -> Tokenizer:
    return train_tokenizer(iter(documents[:100]), 400, kind=request.param, multiple=1)


def test_split_words_become_one_token_each_and_nothing_else_changes(
    old: Tokenizer, documents: list[str], tmp_path: Path
) -> None:
    words = find_words(old, DOMAIN, 1, 2)
    assert [word.times for word in words] == [21]
    longer = extended(old, words)
    assert longer.vocab_size == old.vocab_size + 1
    assert is_extension(longer, old)
    assert not is_extension(old, longer)
    number = longer.vocabulary[words[0].token]
    assert longer.is_maskable[number]
    assert list(longer.encode([f"a {WORD}"])[0])[-1:] == [number]
    others = [*documents[:50], f"un{WORD}", f"a un{WORD}", RARE, f"a {RARE}"]
    assert [list(ids) for ids in longer.encode(others)] == [list(ids) for ids in old.encode(others)]
    assert list(pieces_of_new(longer, old)) == [(number, [old.vocabulary[piece] for piece in words[0].pieces])]

    write_for_others(tmp_path, longer)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    text = f"a {WORD}, un{WORD} and the river"
    assert theirs(text).input_ids == [longer.cls_id, *longer.encode([text])[0], longer.sep_id]
    assert load_tokenizer(tmp_path).fingerprint == longer.fingerprint or old.kind == "byte-bpe"


def test_words_are_those_that_save_most_and_no_rare_ones(old: Tokenizer) -> None:
    found = find_words(old, DOMAIN, 10, 10)
    assert [word.saved for word in found] == sorted((word.saved for word in found), reverse=True)
    assert [word.times for word in found if len(word.token) > 10] == [21, 10]
    assert find_words(old, DOMAIN, 10, 22) == []
    assert find_words(old, reversed(DOMAIN), 10, 10) == found
    again = extended(old, found)
    assert find_words(again, DOMAIN, 10, 10) == []
    assert extended(old, found).fingerprint == again.fingerprint


def test_added_tokens_behind_the_vocabulary_keep_their_ids(old: Tokenizer) -> None:
    tree = json.loads(old.definition)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    tree["added_tokens"].append({"id": old.vocab_size, "content": "[DRUG]", **flags})
    more = tokenizer_of_definition(json.dumps(tree), "the tests'", old.roles.by_role())
    longer = extended(more, find_words(more, DOMAIN, 2, 2))
    assert longer.token(old.vocab_size) == "[DRUG]"
    text = f"a [DRUG] {WORD}"
    assert old.vocab_size in longer.encode([text])[0]
    assert len(longer.encode([text])[0]) < len(more.encode([text])[0])


def test_what_cannot_be_extended_is_refused(old: Tokenizer) -> None:
    word_level = {
        "type": "WordLevel",
        "vocab": {"[UNK]": 0, "[PAD]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4},
        "unk_token": "[UNK]",
    }
    other = tokenizer_of_definition(json.dumps({"version": "1.0", "model": word_level}), "the tests'")
    with pytest.raises(
        UserError, match="kind 'other', which cannot be extended by words: only wordpiece, byte-bpe, unigram"
    ):
        find_words(other, DOMAIN, 1, 1)
    if old.kind == "byte-bpe":
        tree = json.loads(old.definition)
        tree["model"]["vocab"]["madeupword0000"] = old.vocab_size  # as RoBERTa has it: no pre-token is one
        odd = tokenizer_of_definition(json.dumps(tree), "the tests'", old.roles.by_role())
        assert extended(odd, find_words(odd, DOMAIN, 1, 2)).vocab_size == old.vocab_size + 2
        tree = json.loads(old.definition)
        tree["model"]["merges"] = tree["model"]["merges"][:-1]
        lacking = tokenizer_of_definition(json.dumps(tree), "the tests'", old.roles.by_role())
        with pytest.raises(UserError, match="has 1 tokens that its merges do not make"):
            extended(lacking, [NewWord("Ġnew", 1, ("Ġ", "new"))])
