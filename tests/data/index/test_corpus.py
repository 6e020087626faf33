"""An opened corpus: its documents, its token ids, and every way in which a block is not what was indexed."""

from __future__ import annotations

import hashlib
import io
import json
import math
import pickle
import random
import types
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.data.index.corpus import held_out_threshold, text_hash
from maskloom.data.index.files import (
    BLOCK,
    Shard,
    Tokens,
)
from maskloom.data.index.indexing import IndexedShard, index_shard, index_tars, write_index
from maskloom.data.index.loading import load_index
from maskloom.data.reading.samples import tokens_member
from maskloom.errors import DataFault, UserError
from maskloom.tokenizers.base import Tokenized
from maskloom.tokenizers.training import train_tokenizer
from tests.conftest import sentences

from .making import index_here, texts_of, write_tar


def test_documents_are_held_out_by_their_text(tmp_path: Path) -> None:
    rng, fraction, count = random.Random(2), 0.3, 1000
    documents = [sentences(rng, 5) for _ in range(count)]
    twice = [*documents, *(f"  {text}\n" for text in documents)]
    rng.shuffle(twice)
    path = write_tar(tmp_path / "a.tar", [{"jsonl": "\n".join(json.dumps({"text": t}) for t in twice).encode()}])
    index = index_here([path], tmp_path, split="by_hash", fraction=fraction)
    train, held_out = texts_of(index, "train"), texts_of(index, "validation")
    assert sorted(train + held_out) == sorted(twice)
    assert not {text.strip() for text in train} & {text.strip() for text in held_out}
    sigma = math.sqrt(count * fraction * (1 - fraction))
    assert abs(len(set(map(str.strip, held_out))) - count * fraction) < 5 * sigma
    assert (index.header["documents"], index.header["held_out_documents"]) == (len(train), len(held_out))


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=30), st.floats(0, 1))
def test_more_held_out_keeps_what_was_held_out(text: str, fraction: float) -> None:
    assert 0 <= text_hash(text) < 2**32
    assert held_out_threshold(fraction / 2) <= held_out_threshold(fraction) <= held_out_threshold(1.0) == 2**32
    assert held_out_threshold(0.0) == 0


def test_blocks_of_one_side_are_listed_for_that_side(tmp_path: Path) -> None:
    paths = [write_tar(tmp_path / f"{n}.tar", [{"txt": str(n)}]) for n in range(2)]
    indexed = [index_shard(paths[0], 1, "text", "train"), index_shard(paths[1], 1, "text", "validation")]
    index = write_index(tmp_path, indexed, text_key="text", block_bytes=1, threshold=5)
    assert index.train_blocks.tolist() == [0]
    assert index.held_out_blocks.tolist() == [1]
    assert (index.documents(0, "train"), index.documents(0, "validation")) == (["0"], [])
    assert (index.documents(1, "train"), index.documents(1, "validation")) == ([], ["1"])


def test_reading_finds_any_flipped_bit(corpus: Path) -> None:
    index = load_index(corpus)
    data = (corpus / "1.tar").read_bytes()
    rng = random.Random(3)
    for _ in range(40):
        offset, length = (int(index.columns[name][4]) for name in ("offset", "length"))
        damaged = bytearray(data)
        damaged[offset + rng.randrange(length)] ^= 1 << rng.randrange(8)
        (corpus / "1.tar").write_bytes(damaged)
        with pytest.raises(UserError, match=rf"1\.tar: the block at offset {offset} .*crc32"):
            load_index(corpus).documents(4, "train")
        assert load_index(corpus).documents(3, "train") == ["a" * 700]


def test_a_shard_that_vanishes_while_it_is_read_is_named(corpus: Path) -> None:
    index = load_index(corpus)
    (corpus / "1.tar").unlink()
    with pytest.raises(UserError, match=r"1\.tar: No such file"):
        index.documents(3, "train")


def test_another_number_of_documents_than_indexed_is_refused(corpus: Path) -> None:
    index = load_index(corpus)
    index.columns["documents"] = np.full(6, 2, dtype=np.int32)
    with pytest.raises(UserError, match=r"1 documents in the block at offset 0, the index says 2: index it again"):
        index.documents(0, "train")


@pytest.mark.parametrize("alone", [True, False])
def test_text_that_the_tokenizer_cannot_encode_is_a_fault(
    tmp_path: Path, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its library panics, at one text or, not `alone`, at several together."""
    tokenizer = train_tokenizer([sentences(random.Random(1), 40)], 80)

    class PanicException(BaseException):  # as that of pyo3, which cannot be imported
        pass

    def panic(texts: list[str], add_special_tokens: bool) -> list[Any]:
        if any("zzpanic" in text for text in texts) and (alone or len(texts) > 1):
            raise PanicException("out of range")
        return [types.SimpleNamespace(ids=[7]) for _ in texts]

    write_tar(tmp_path / "0.tar", [{"txt": text} for text in ("good", "zzpanic", "good again")])
    index = index_here([tmp_path / "0.tar"], tmp_path, block_bytes=1 << 20)
    monkeypatch.setitem(tokenizer.__dict__, "_encoder", types.SimpleNamespace(encode_batch_fast=panic))
    which = "document 2 of 3" if alone else "one of the 3 documents"
    with pytest.raises(
        DataFault, match=rf"0\.tar: {which} for train in the block at offset 0: .*out of range"
    ) as fault:
        index.tokenized(0, "train", tokenizer)
    assert fault.value.kind == "tokens"
    assert fault.value.shard.endswith("0.tar")


def test_lack_of_memory_is_not_a_fault_of_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = train_tokenizer([sentences(random.Random(1), 40)], 80)

    def lack(texts: list[str], add_special_tokens: bool) -> list[Any]:
        raise MemoryError

    write_tar(tmp_path / "0.tar", [{"txt": "good"}])
    index = index_here([tmp_path / "0.tar"], tmp_path, block_bytes=1 << 20)
    monkeypatch.setitem(tokenizer.__dict__, "_encoder", types.SimpleNamespace(encode_batch_fast=lack))
    with pytest.raises(MemoryError):
        index.tokenized(0, "train", tokenizer)


@pytest.mark.parametrize("bad", [99, 1 << 20, (1 << 31) - 1, -1])
def test_token_ids_that_the_tokenizer_lacks_are_a_fault(tmp_path: Path, bad: int) -> None:
    """Not the model's, which would end with an index out of range on a GPU."""
    tokenizer: Any = types.SimpleNamespace(fingerprint="f", vocab_size=99, source="t")
    documents = Tokenized(np.asarray([5, 98, bad]), np.asarray([3]))
    data = tokens_member(documents, np.zeros(1, dtype=bool), 1 << 17)
    path = write_tar(tmp_path / "0.tar", [{"tokens": data}])
    size = path.stat().st_size
    rows = np.array([(0, size, 1, 0, zlib.crc32(path.read_bytes()))], dtype=BLOCK)
    entry = IndexedShard(Shard(str(path), size, hashlib.sha256(path.read_bytes()).hexdigest(), "train"), rows, 9)
    how: Any = {"text_key": "text", "block_bytes": 1, "threshold": 0, "digest": "0" * 64}
    index = write_index(tmp_path, [entry], tokens=Tokens("f"), **how)
    with pytest.raises(DataFault, match=rf"0\.tar: the block at offset 0 holds the token id {bad}, .* has 99") as fault:
        index.tokenized(0, "train", tokenizer)
    assert fault.value.kind == "tokens"
    tokenizer.vocab_size = 1 << 31
    if bad >= 0:
        assert index.tokenized(0, "train", tokenizer).ids.tolist() == [5, 98, bad]


def test_a_document_that_became_bad_later_is_a_fault_all_the_same(tmp_path: Path) -> None:
    """Leaving out what was bad when it was indexed must not hide what is bad since."""
    path = write_tar(tmp_path / "a.tar", [{"txt": "good"}, {"txt": b"ab\xff"}, {"txt": "fine"}])
    index = index_tars([path], tmp_path, block_bytes=1, skip_bad=True)
    with pytest.raises(DataFault, match="0 documents in the block at offset 0, the index says 1") as fault:
        index.documents(0, "train", io.BytesIO(path.read_bytes()[:1024].replace(b"good", b"g\xffod")))
    assert fault.value.kind == "count"


def test_a_pickled_index_is_opened_again(corpus: Path) -> None:
    index = load_index(corpus)
    data = pickle.dumps(index)
    assert len(data) < 2000  # no columns, no shards
    copy = pickle.loads(data)
    assert (copy.digest, copy.shards, copy.folder, copy.settings) == (
        index.digest,
        index.shards,
        index.folder,
        index.settings,
    )
    assert texts_of(copy) == texts_of(index)
    assert copy.train_blocks.tolist() == index.train_blocks.tolist()


def test_an_index_that_was_written_anew_meanwhile_is_refused(corpus: Path) -> None:
    data = pickle.dumps(load_index(corpus))
    index_here([corpus / "0.tar"], corpus, block_bytes=1)
    with pytest.raises(UserError, match="was written anew while it was in use: start again"):
        pickle.loads(data)
    (corpus / "index.json").unlink()
    with pytest.raises(UserError, match="no index at"):
        pickle.loads(data)
