"""The text of the measurements: what is prepared is not prepared again, and can be taken along without what it was made of."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from step import text
from step.text import check_vocabulary, grouped_rows, line_rows, token_documents

from maskloom.data.index.corpus import Index
from maskloom.data.writing.passes import Options
from maskloom.data.writing.shards import write_shards
from maskloom.errors import UserError
from maskloom.tokenizers.base import Tokenizer
from tests.conftest import same_tokenizer

SEQ_LEN = 32


def test_tokens_and_tokenizer_are_enough(documents: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "input.txt").write_text("\n\n".join(documents[:60]).replace("\r", " "))
    asked: list[list[str]] = []

    def small(inputs: list[str], out: Path, options: Options, processes: int) -> None:
        asked.append(inputs)
        write_shards(
            [str(tmp_path / "input.txt")], out, Options(layout="blank-line", block_bytes=options.block_bytes), 1
        )

    monkeypatch.setattr(text, "write_shards", small)
    (tmp_path / "tokenizer-300").mkdir()
    same_tokenizer(documents, 300).save(tmp_path / "tokenizer-300" / "tokenizer.json")
    made = text.prepare(tmp_path, 300, 4096, 1)
    index, _ = made.open()
    assert asked == [["documentation:"]]
    shutil.rmtree(tmp_path / "text-4096")
    again, _ = text.prepare(tmp_path, 300, 4096, 1).open()
    assert again.digest == index.digest
    assert len(asked) == 1
    assert not (tmp_path / "text-4096").exists()


def test_grouped_rows_are_the_documents_one_after_the_other(index: Index, tokenizer: Tokenizer) -> None:
    rows = grouped_rows(index, tokenizer, SEQ_LEN, 1 << 20)
    stream = [i for ids in token_documents(index, tokenizer) for i in (tokenizer.cls_id, *ids, tokenizer.sep_id)]
    assert rows.size == len(stream) // SEQ_LEN * SEQ_LEN  # what is left over at the end is no full row
    assert rows.reshape(-1).tolist() == stream[: rows.size]
    assert np.array_equal(grouped_rows(index, tokenizer, SEQ_LEN, 3), rows[:3])


def test_a_line_row_is_one_document_cut_and_padded(index: Index, tokenizer: Tokenizer) -> None:
    rows = line_rows(index, tokenizer, SEQ_LEN, 1 << 20)
    documents = list(token_documents(index, tokenizer))
    assert len(rows) == len(documents)
    for row, ids in zip(rows, documents, strict=True):
        kept = [tokenizer.cls_id, *ids[: SEQ_LEN - 2], tokenizer.sep_id]
        assert row.tolist() == kept + [tokenizer.pad_id] * (SEQ_LEN - len(kept))


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tokenizer: Tokenizer) -> None:
    check_vocabulary(tokenizer, tokenizer.vocab_size)
    with pytest.raises(
        UserError, match=f"has {tokenizer.vocab_size} ids, the measured models {tokenizer.vocab_size - 1}"
    ):
        check_vocabulary(tokenizer, tokenizer.vocab_size - 1)
