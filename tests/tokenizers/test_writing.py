"""Hugging Face takes what is written as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, BertTokenizer

from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.loading import load_tokenizer, tokenizer_of_definition
from maskloom.tokenizers.writing import write_for_others

from .vocabularies import TOKENS, write


@pytest.mark.parametrize("lowercase", [True, False])
def test_hugging_face_takes_what_we_write_as_it_is(lowercase: bool, tmp_path: Path) -> None:
    ours = load_tokenizer(write(tmp_path / "vocabulary", TOKENS, do_lower_case=lowercase))
    out = tmp_path / "out"
    out.mkdir()
    write_for_others(out, ours, 77)
    assert load_tokenizer(out).fingerprint == ours.fingerprint
    text = "The RIVER learns, É [MASK] 中文"
    for theirs in (AutoTokenizer.from_pretrained(out), BertTokenizer.from_pretrained(out)):
        plain, masked = theirs(text.replace("[MASK]", "x"))["input_ids"], theirs(text)
        assert plain[1:-1] == ours.encode([text.replace("[MASK]", "x")])[0].tolist()
        assert masked["input_ids"].count(ours.mask_id) == 1
        assert set(masked) == {"input_ids", "token_type_ids", "attention_mask"}
        assert (theirs.model_max_length, theirs.mask_token_id, theirs.pad_token_id) == (77, ours.mask_id, ours.pad_id)


@pytest.mark.parametrize(
    "given", [None, {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}]
)
def test_a_text_gets_the_ends_that_the_model_was_trained_with(
    given: object, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    bare = tokenizer_of_definition(json.dumps(json.loads(tokenizer.definition) | {"post_processor": given}), "bare")
    write_for_others(tmp_path, bare)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    expected = [bare.cls_id, *bare.encode(["the river"])[0].tolist(), bare.sep_id]
    assert theirs("the river")["input_ids"] == expected
    assert theirs("the river", "x")["token_type_ids"] == [0] * len(expected) + [1, 1]
