"""Token shards give the rows of the text that they were made from."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import webdataset

from maskloom.data.index.indexing import check_shard, index_tars
from maskloom.data.writing.shards import finish, write_shards
from maskloom.data.writing.token_shards import tokenize_corpus
from maskloom.data.writing.work import JobPart
from maskloom.errors import UserError
from maskloom.tokenizers.base import Tokenizer
from tests.conftest import sentences

from .making import SMALL


def test_token_shards_of_text_and_of_a_corpus_are_one_corpus(
    tmp_path: Path, many_files: list[str], tokenizer: Tokenizer
) -> None:
    text, report = write_shards(many_files, tmp_path / "text", SMALL)
    direct, again = write_shards(many_files, tmp_path / "direct", SMALL, tokenizer=tokenizer)
    assert report == again
    for part in (JobPart(1, 2), JobPart(2, 2)):
        tokenize_corpus(text, tmp_path / "later", tokenizer, part, 1, lambda name, total: lambda amount: None)
    later, nothing = finish(tmp_path / "later")
    assert nothing is None
    assert text.digest == direct.digest == later.digest
    assert direct.header["table_digest"] == later.header["table_digest"] != text.header["table_digest"]
    assert direct.header["text_bytes"] == later.header["text_bytes"] == text.header["text_bytes"]
    for name in ("shard", "documents", "held_out"):
        assert direct.columns[name].tolist() == later.columns[name].tolist() == text.columns[name].tolist()
    for block in range(text.header["blocks"]):
        for split in ("train", "validation"):
            expected = [ids.tolist() for ids in text.tokenized(block, split, tokenizer)]
            for index in (direct, later):
                assert [ids.tolist() for ids in index.tokenized(block, split, tokenizer)] == expected
    for index in (direct, later):
        assert all(check_shard(index, number) == [] for number in range(len(index.shards)))
    with pytest.raises(UserError, match="holds token shards already"):
        tokenize_corpus(later, tmp_path / "x", tokenizer, JobPart(), 1, lambda name, total: lambda amount: None)


def test_plain_webdataset_reads_token_shards_under_the_keys_of_the_text(
    tmp_path: Path, many_files: list[str], tokenizer: Tokenizer
) -> None:
    write_shards(many_files, tmp_path / "text", SMALL)
    write_shards(many_files, tmp_path / "tokens", SMALL, tokenizer=tokenizer)

    def keys(folder: str) -> list[str]:
        urls = [str(path) for path in sorted((tmp_path / folder).glob("*.tar"))]
        return [sample["__key__"] for sample in webdataset.WebDataset(urls, shardshuffle=False)]

    assert keys("tokens")
    assert set(keys("tokens")) <= set(keys("text"))


def test_other_peoples_tars_are_tokenised_with_their_held_out_share(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """One document a sample, both sides in a shard, one sample that cannot be read."""
    rng = random.Random(2)
    with webdataset.TarWriter(str(tmp_path / "a.tar"), mtime=0) as tar:
        for number in range(40):
            tar.write({"__key__": f"sub/{number}", "txt": sentences(rng, 30).encode() if number != 7 else b"\xff"})
    text = index_tars([tmp_path / "a.tar"], tmp_path / "text", block_bytes=800, fraction=0.3, skip_bad=True)
    assert text.header["bad_documents"] == 1
    tokenize_corpus(text, tmp_path / "out", tokenizer, JobPart(), 1, lambda name, total: lambda amount: None)
    tokens, _ = finish(tmp_path / "out")
    assert tokens.digest == text.digest
    assert tokens.header["held_out_documents"] == text.header["held_out_documents"] > 0
    for block in range(text.header["blocks"]):
        for split in ("train", "validation"):
            found, expected = (index.tokenized(block, split, tokenizer) for index in (tokens, text))
            assert [ids.tolist() for ids in found] == [ids.tolist() for ids in expected]
