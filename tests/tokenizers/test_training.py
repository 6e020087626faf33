"""A tokenizer is trained on text."""

from __future__ import annotations

import pytest

from maskloom.errors import UserError
from maskloom.tokenizers import TOKENIZERS, TokenizerKind
from maskloom.tokenizers.training import train_tokenizer, trainable_kinds
from maskloom.tokenizers.wordpiece import SPECIAL_TOKENS, train_word_piece


@pytest.mark.parametrize("vocab_size", [150, 400])
def test_a_trained_vocabulary_keeps_to_its_size_and_knows_its_text(documents: list[str], vocab_size: int) -> None:
    tokenizer = train_tokenizer(iter(documents), vocab_size)
    assert len(SPECIAL_TOKENS) < tokenizer.vocab_size <= vocab_size
    for text, ids in zip(documents, tokenizer.encode(documents), strict=True):
        assert tokenizer.unk_id not in ids
        assert tokenizer.decode(ids).replace(" ", "") == text.replace(" ", "")


def test_lower_casing_is_a_choice() -> None:
    texts = ["River RIVER river"] * 10
    lower, cased = (
        train_tokenizer(texts, 100, lowercase=lowercase).encode(["RIVER", "river"]) for lowercase in (True, False)
    )
    assert lower[0].tolist() == lower[1].tolist()
    assert cased[0].tolist() != cased[1].tolist()


def test_a_kind_that_is_not_there_or_cannot_be_trained_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TOKENIZERS, "readable", TokenizerKind("readable", lambda tree: False))
    for kind in ("absent", "readable"):
        said = f"no kind of tokenizer '{kind}' that can be trained: choose one of wordpiece, byte-bpe; one of your own needs"
        with pytest.raises(UserError, match=said):
            train_tokenizer([], 100, kind=kind)
    assert trainable_kinds() == ["wordpiece", "byte-bpe"]


def test_a_kind_that_does_not_know_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    mistaken = TokenizerKind("mistaken", lambda tree: False, train=train_word_piece)
    monkeypatch.setitem(TOKENIZERS, "mistaken", mistaken)
    with pytest.raises(UserError, match="kind 'mistaken' trained would be read as one of kind 'wordpiece'"):
        train_tokenizer(["the river"] * 5, 100, kind="mistaken")


def test_a_vocabulary_has_room_beside_the_special_tokens() -> None:
    with pytest.raises(UserError, match="--vocab-size 5 leaves no id beside the 5 special tokens"):
        train_tokenizer(["the river"], 5)
