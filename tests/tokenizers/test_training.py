"""A tokenizer is trained on text."""

from __future__ import annotations

import pytest

from maskloom.tokenizers.training import train_tokenizer
from maskloom.tokenizers.wordpiece import SPECIAL_TOKENS


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
