"""The same text in both kinds of rows, what is counted of them, and a step of plain Hugging Face."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from maskloom.bench.cases import TINY, choose_systems
from maskloom.bench.systems import (
    Facts,
    RowDataset,
    Training,
    build,
    collated_facts,
    first_model,
    make_collator,
    packed_facts,
    run_config,
)
from maskloom.bench.text import Text, check_vocabulary, grouped_rows, line_rows, token_documents
from maskloom.data.index.index import Index
from maskloom.data.rows import Rows
from maskloom.errors import UserError
from maskloom.tokenizers.base import Tokenizer

SEQ_LEN = 32


@pytest.fixture(scope="module")
def text(corpus_dir: Path, tokenizer_dir: Path) -> Text:
    return Text(str(corpus_dir), str(tokenizer_dir))


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


def test_facts_of_packed_rows(tokenizer: Tokenizer) -> None:
    cls_, sep, pad = tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id
    tokens = np.array([[cls_, 9, 9, sep, cls_, 9, sep, pad], [cls_, 9, 9, 9, 9, 9, 9, sep]], np.int32)
    starts = np.array([[1, 0, 0, 0, 1, 0, 0, 1], [1, 0, 0, 0, 0, 0, 0, 0]], bool)
    chosen = np.array([[0, 1, 0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 0, 0, 0, 0]], bool)
    found = packed_facts(Rows(tokens, tokens, starts, chosen), tokenizer)
    expected = Facts(rows=2, text_tokens=9, slots=15, squares=4**2 + 3**2 + 8**2, predicted=3, all_slots=16)
    assert found == expected
    assert Facts.total([expected, expected]).squares == 2 * expected.squares


@pytest.mark.parametrize("is_padded", [False, True])
def test_facts_of_collated_rows(is_padded: bool, text: Text, tokenizer: Tokenizer) -> None:
    cls_, sep, pad = tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id
    tail = [sep, pad, pad] if is_padded else [9, sep, 9]
    rows = np.array([[cls_, 9, 9, 9, 9, *tail], [cls_, 9, 9, 9, 9, 9, 9, sep]], np.int32)
    dataset = RowDataset(rows, tokenizer)
    batch = make_collator(text, tokenizer, seed=1)([dataset[0], dataset[1]])
    found = collated_facts(batch, is_padded)
    lengths = (6, 8) if is_padded else (8, 8)
    assert (found.rows, found.all_slots, found.slots) == (2, 16, sum(lengths))
    assert found.squares == sum(length**2 for length in lengths)
    assert found.text_tokens == (4 if is_padded else 6) + 6
    assert found.predicted == int((batch["labels"] != -100).sum())


@pytest.mark.parametrize("name", ["hf-eager", "hf-sdpa", "hf-lines"])
def test_a_step_of_hugging_face_trains(name: str, text: Text) -> None:
    (system,) = choose_systems([name], "cpu")
    trained = build(system, Training(TINY, vocab_size=512), text, "cpu")
    batch = next(trained.read(workers=0))
    assert [part["input_ids"].shape for part in batch.content] == [(TINY.micro_batch_rows, TINY.seq_len)] * 2
    assert ("attention_mask" in batch.content[0]) == (name == "hf-lines")  # full rows go without, the fastest way
    before = {key: value.clone() for key, value in trained.module.state_dict().items()}
    trained.step(batch, lr=1e-3)
    assert float(trained.total_loss) == pytest.approx(np.log(512), rel=0.05)  # an untrained model knows nothing
    assert all(parameter.grad is None for parameter in trained.module.parameters())
    changed = [key for key, value in trained.module.state_dict().items() if not torch.equal(value, before[key])]
    assert "bert.embeddings.word_embeddings.weight" in changed
    assert "bert.encoder.layer.1.output.dense.weight" in changed


def test_both_train_with_the_same_settings(text: Text, tokenizer: Tokenizer) -> None:
    training = Training(TINY, vocab_size=512)
    ours = run_config(choose_systems(["maskloom-compile"], "cpu")[0], training, text, "cpu")
    assert (ours.engine.kernels, ours.engine.precision, ours.engine.zero_stage) == ("compile", "fp32", 0)
    assert (ours.model.hidden_dropout_prob, ours.model.attention_probs_dropout_prob) == (0.1, 0.0)
    theirs = build(choose_systems(["hf-sdpa"], "cpu")[0], training, text, "cpu")
    weights = first_model(training, tokenizer).state_dict()
    shapes = {name: value.shape for name, value in theirs.module.state_dict().items()}
    assert {name: value.shape for name, value in weights.items()} == shapes
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "hidden_act", "layer_norm_eps"):
        assert getattr(theirs.module.config, name) == getattr(ours.model, name)
    decays = sorted(group["weight_decay"] for group in theirs.optimizer.param_groups)
    assert decays == [0.0, ours.optimizer.weight_decay]


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tokenizer: Tokenizer) -> None:
    check_vocabulary(tokenizer, tokenizer.vocab_size)
    with pytest.raises(
        UserError, match=f"has {tokenizer.vocab_size} ids, the measured models {tokenizer.vocab_size - 1}"
    ):
        check_vocabulary(tokenizer, tokenizer.vocab_size - 1)
