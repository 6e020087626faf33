"""`maskloom tokenizer` learns from the training documents of a corpus alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from maskloom.data.index.corpus import text_hash
from maskloom.tokenizers import TOKENIZERS
from maskloom.tokenizers.loading import load_tokenizer
from maskloom.tokenizers.wordpiece import SPECIAL_TOKENS

from .conftest import Command


def test_a_vocabulary_of_at_most_the_size_is_written(corpus_dir: Path, tmp_path: Path, succeeds: Command) -> None:
    printed = succeeds("tokenizer", corpus_dir, tmp_path / "new" / "tokenizer", "--vocab-size", 120)
    tokenizer = load_tokenizer(tmp_path / "new" / "tokenizer")
    assert len(SPECIAL_TOKENS) < tokenizer.vocab_size <= 120
    assert "are read: now the vocabulary is learned" in printed
    assert f"{tokenizer.vocab_size} ids" in printed
    names = {path.name for path in (tmp_path / "new" / "tokenizer").iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json"}
    theirs = AutoTokenizer.from_pretrained(tmp_path / "new" / "tokenizer")
    for name in ("pad", "unk", "cls", "sep", "mask"):
        assert getattr(theirs, f"{name}_token_id") == getattr(tokenizer, f"{name}_id")


def test_held_out_documents_are_not_learnt_from(tmp_path: Path, succeeds: Command) -> None:
    texts = []
    for number in range(300):
        # The letter says on which side the document falls: ж where it is held out, ш where it is not.
        held, trained = f"river {number} жж", f"river {number} шш"
        texts += [held] * (text_hash(held) < 2**30) + [trained] * (text_hash(trained) >= 2**30)
    assert any("ж" in text for text in texts)
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    succeeds("shards", tmp_path / "text.jsonl", tmp_path / "corpus", "--val-fraction", 0.25, "--processes", 1)
    succeeds("tokenizer", tmp_path / "corpus", tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    unknown, known = (tokenizer.unk_id in ids for ids in tokenizer.encode(["ж", "ш"]))
    assert (unknown, known) == (True, False)


@pytest.mark.parametrize("cased", [False, True])
def test_case_is_kept_on_demand(cased: bool, tmp_path: Path, succeeds: Command) -> None:
    (tmp_path / "text.jsonl").write_text('{"text": "River RIVER river"}\n' * 3)
    succeeds("shards", tmp_path / "text.jsonl", tmp_path / "corpus", "--val-fraction", 0, "--processes", 1)
    succeeds("tokenizer", tmp_path / "corpus", tmp_path, *["--cased"] * cased)
    tokenizer = load_tokenizer(tmp_path)
    upper, lower = (ids.tolist() for ids in tokenizer.encode(["River", "river"]))
    assert (upper != lower) is cased


def test_no_more_text_is_read_than_asked_for(corpus_dir: Path, tmp_path: Path, succeeds: Command) -> None:
    succeeds("tokenizer", corpus_dir, tmp_path / "all")
    succeeds("tokenizer", corpus_dir, tmp_path / "some", "--max-bytes", "1K")
    sizes = [load_tokenizer(tmp_path / name).vocab_size for name in ("all", "some")]
    assert sizes[0] > sizes[1]


def test_a_kind_limits_the_text(
    corpus_dir: Path, tmp_path: Path, succeeds: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    succeeds("tokenizer", corpus_dir, tmp_path / "all", "--max-bytes", "256M")
    monkeypatch.setitem(TOKENIZERS, "wordpiece", replace(TOKENIZERS["wordpiece"], train_bytes=1024))
    succeeds("tokenizer", corpus_dir, tmp_path / "some")
    sizes = [load_tokenizer(tmp_path / name).vocab_size for name in ("all", "some")]
    assert sizes[0] > sizes[1]


def test_bad_arguments_are_refused(corpus_dir: Path, tmp_path: Path, fails: Command) -> None:
    assert "leaves no id beside the 5 special tokens" in fails("tokenizer", corpus_dir, tmp_path, "--vocab-size", 5)
    assert "no index at" in fails("tokenizer", tmp_path, tmp_path / "out")
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in fails("tokenizer", corpus_dir, tmp_path / "file")
    assert "choose one of wordpiece" in fails("tokenizer", corpus_dir, tmp_path, "--kind", "absent")
    assert "--spare 9 leaves no id" in fails("tokenizer", corpus_dir, tmp_path, "--vocab-size", 9, "--spare", 9)


def test_a_kind_and_its_sizes_are_chosen(corpus_dir: Path, tmp_path: Path, succeeds: Command) -> None:
    printed = succeeds("tokenizer", corpus_dir, tmp_path, "--kind", "unigram", "--vocab-size", 200, "--spare", 5)
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.kind, tokenizer.vocab_size % 64) == ("unigram", 0)
    assert "are read: now the vocabulary is learned" in printed
    assert f"{tokenizer.vocab_size} ids" in printed
    assert {f"[unused{number}]" for number in range(5)} <= set(tokenizer.vocabulary)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.mask_token_id, theirs.bos_token_id) == (tokenizer.mask_id, tokenizer.cls_id)
    assert set(theirs("the river")) == {"input_ids", "attention_mask"}
    succeeds("tokenizer", corpus_dir, tmp_path, "--kind", "unigram", "--vocab-size", 200, "--multiple", 50)
    assert load_tokenizer(tmp_path).vocab_size % 50 == 0
