"""What packing and masking need of a tokenizer, whatever its kind."""

from __future__ import annotations

import itertools
import json
import pickle
import re
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.errors import UserError
from maskloom.tokenizers import base as module
from maskloom.tokenizers.base import Tokenized, Tokenizer, parts_of
from maskloom.tokenizers.loading import load_tokenizer, tokenizer_of_definition
from maskloom.tokenizers.pipeline import AT_BLANKS
from maskloom.tokenizers.wordpiece import SPECIAL_TOKENS
from tests.conftest import WORDS

words = st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join)


def changed(tokenizer: Tokenizer, **settings_: object) -> Tokenizer:
    return tokenizer_of_definition(json.dumps(json.loads(tokenizer.definition) | settings_), "changed")


def special_ids(tokenizer: Tokenizer) -> set[int]:
    return {tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id}


def test_the_five_special_tokens_have_ids_of_their_own(tokenizer: Tokenizer) -> None:
    ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    assert tuple(tokenizer.token(number) for number in ids) == SPECIAL_TOKENS
    assert len(set(ids)) == len(SPECIAL_TOKENS)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sampled_from([*SPECIAL_TOKENS, "[unused1]", *WORDS]), min_size=1, max_size=20),
    st.sampled_from(["", " "]),
)
def test_literal_special_tokens_stay_text(tokenizer: Tokenizer, parts: list[str], between: str) -> None:
    (ids,) = tokenizer.encode([between.join(parts)])
    assert not special_ids(tokenizer) - {tokenizer.unk_id} & set(ids.tolist())


@settings(max_examples=15, deadline=None)
@given(st.lists(words | st.text(max_size=30), max_size=6))
def test_texts_are_encoded_independently(tokenizer: Tokenizer, texts: list[str]) -> None:
    together = tokenizer.encode(texts)
    assert len(together) == len(texts)
    for text, ids in zip(texts, together, strict=True):
        assert ids.dtype == np.int32
        assert ids.tolist() == tokenizer.encode([text])[0].tolist()


@settings(max_examples=30, deadline=None)
@given(words, st.integers(12, 60))
def test_a_long_text_cut_at_white_space_gives_the_same_tokens(tokenizer: Tokenizer, text: str, most: int) -> None:
    (whole,) = tokenizer.encode([text])
    with patch.object(module, "MAX_ENCODE_CHARS", most):  # no word is as long, so that every cut finds a space
        (cut,) = tokenizer.encode([text])
    assert cut.tolist() == whole.tolist()


@settings(max_examples=30, deadline=None)
@given(st.text("ab \n", max_size=200), st.integers(1, 20))
def test_the_parts_of_a_long_text_are_the_text(text: str, most: int) -> None:
    with patch.object(module, "MAX_ENCODE_CHARS", most):
        parts = parts_of(text, AT_BLANKS)
    assert "".join(parts) == text
    # Each begins at the first blank between two other characters that the bound allows.
    for before, part in itertools.pairwise(parts):
        assert re.match(r" \S", part) and re.search(r"\S\Z", before)
        assert not re.search(r"\S \S", (before + part[:2])[most - 1 : -1])
    assert parts_of(text, None) == [text]


@settings(max_examples=20, deadline=None)
@given(words)
def test_decoding_gives_known_words_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode([text])[0]) == text


def test_truncation_and_padding_in_the_file_are_not_applied(tokenizer: Tokenizer) -> None:
    cutting = changed(
        tokenizer,
        truncation={"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        padding={
            "strategy": {"Fixed": 64},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        },
    )
    text = " ".join(WORDS)
    assert cutting.encode([text])[0].tolist() == tokenizer.encode([text])[0].tolist()
    assert cutting.fingerprint == tokenizer.fingerprint


def test_specials_and_unused_are_never_maskable(tokenizer: Tokenizer) -> None:
    tree = json.loads(tokenizer.definition)
    first = len(tree["model"]["vocab"])
    unused = {f"[unused{number}]": first + number for number in range(3)}
    tree["model"]["vocab"] |= unused
    extended = tokenizer_of_definition(json.dumps(tree), "extended")
    assert extended.vocab_size == first + len(unused)
    forbidden = special_ids(extended) | set(unused.values())
    assert set(np.flatnonzero(~extended.is_maskable)) == forbidden
    assert set(extended.random_ids) == set(range(extended.vocab_size)) - forbidden


def test_a_pickled_tokenizer_encodes_the_same(tokenizer: Tokenizer) -> None:
    tokenizer.encode(["so that it holds an encoder"])
    copy = pickle.loads(pickle.dumps(tokenizer))
    text = " ".join(WORDS) + " [MASK]"
    assert copy.encode([text])[0].tolist() == tokenizer.encode([text])[0].tolist()
    assert copy.fingerprint == tokenizer.fingerprint


def test_saving_and_loading_keeps_the_fingerprint(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint
    assert load_tokenizer(tmp_path / "tokenizer.json").fingerprint == tokenizer.fingerprint


def test_the_fingerprint_follows_what_determines_the_encoding(tokenizer: Tokenizer) -> None:
    assert changed(tokenizer, normalizer=None).fingerprint != tokenizer.fingerprint


@pytest.mark.parametrize("absent", SPECIAL_TOKENS)
def test_a_vocabulary_without_a_special_token_is_refused_by_its_name(tokenizer: Tokenizer, absent: str) -> None:
    tree = json.loads(tokenizer.definition)
    tree["added_tokens"] = [token for token in tree["added_tokens"] if token["content"] != absent]
    tree["model"]["vocab"]["other"] = tree["model"]["vocab"].pop(absent)
    tree["post_processor"] = None
    with pytest.raises(UserError) as error:
        tokenizer_of_definition(json.dumps(tree), "my/tokenizer.json")
    assert f"my/tokenizer.json has no {absent}" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"not json", b"\xff\xfe\x00", b'{"model": 3}'])
def test_a_file_that_is_not_a_tokenizer_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.json is not a tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_missing_tokenizer_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="maskloom tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="maskloom tokenizer"):
        load_tokenizer(tmp_path / "file" / "tokenizer.json")


id_lists = st.lists(st.lists(st.integers(0, 99), max_size=5), max_size=8)


def tokenized(texts: list[list[int]]) -> Tokenized:
    return Tokenized.of([np.asarray(text, dtype=np.int32) for text in texts])


@settings(max_examples=50, deadline=None)
@given(id_lists)
def test_tokenized_documents_are_a_sequence_of_their_ids(texts: list[list[int]]) -> None:
    documents = tokenized(texts)
    assert len(documents) == len(texts)
    assert [ids.tolist() for ids in documents] == texts
    assert [documents[number].tolist() for number in range(-len(texts), 0)] == texts
    assert documents.ids.tolist() == [token for text in texts for token in text]
    assert documents.ends.tolist() == np.cumsum([len(text) for text in texts]).tolist()
    assert (documents.ids.dtype, documents.lengths.dtype) == (np.int32, np.int64)
    with pytest.raises(IndexError):
        documents[len(texts)]


@settings(max_examples=50, deadline=None)
@given(id_lists, st.data())
def test_selected_documents_keep_their_ids_and_their_order(texts: list[list[int]], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts)))
    found = tokenized(texts).select(np.asarray(chosen, dtype=bool))
    assert [ids.tolist() for ids in found] == [text for text, is_chosen in zip(texts, chosen, strict=True) if is_chosen]


def test_no_text_at_all_is_encoded_as_nothing(tokenizer: Tokenizer) -> None:
    for texts in ([], [""], ["", " "]):
        documents = tokenizer.encode(texts)
        assert (len(documents), len(documents.ids)) == (len(texts), 0)
        assert documents.lengths.tolist() == [0] * len(texts)


def variant(tokenizer: Tokenizer, **normalizer: object) -> Tokenizer:
    tree = json.loads(tokenizer.definition)
    tree["normalizer"].update(normalizer)
    return tokenizer_of_definition(json.dumps(tree), "a variant")


def test_what_is_known_stays_bounded(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_KNOWN", 100)
    tested = variant(tokenizer)
    long = "a" * (module.LONGEST_KNOWN_CHARS + 1)
    for number in range(50):
        text = " ".join(f"word{number}x{other} {long}{other}" for other in range(9))
        (ids,) = tested.encode([text])
        assert ids.tolist() == tested._encoder.encode(text, add_special_tokens=False).ids
        assert len(tested._known) <= 100
        assert not any(len(stretch) > module.LONGEST_KNOWN_CHARS for stretch in tested._known)
