"""Rows in the forms that Hugging Face's models take: the same pieces, masks and loss as our own model's."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface

from maskloom.config import MODELS
from maskloom.data.forms import FORMS, IGNORED, Batch, packed, padded
from maskloom.models.architecture import ARCHITECTURES, unused_positions_of
from maskloom.tokenizers.base import Tokenizer
from tests.architectures import EACH, tiny
from tests.models.parity import S, bucket, make_rows, pair, piece_lengths

LENGTHS = [[32], [20, 9], [9, 10, 13], [31], [15]]


def pieces_of(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """The ids and the labels of each piece, from either form."""
    ids, labels = batch["input_ids"], batch["labels"]
    if "attention_mask" in batch:
        sizes = batch["attention_mask"].sum(1).tolist()
        return [(ids[row, :size].tolist(), labels[row, :size].tolist()) for row, size in enumerate(sizes)]
    ends = batch["cu_seq_lens_q"].tolist()
    return [(ids[0, begin:end].tolist(), labels[0, begin:end].tolist()) for begin, end in itertools.pairwise(ends)]


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(piece_lengths(), min_size=1, max_size=4), seed=st.integers(0, 2**16))
def test_both_forms_hold_each_piece_once_with_its_masks(
    lengths: list[list[int]], seed: int, tokenizer: Tokenizer
) -> None:
    rows = make_rows(lengths, tokenizer, seed)
    expected = []
    for row, pieces in enumerate(lengths):
        slot = 0
        for length in pieces:
            part = row, slice(slot, slot + length)
            labels = np.where(rows.chosen[part], rows.tokens[part], IGNORED)
            expected.append((rows.input_ids[part].tolist(), labels.tolist()))
            slot += length
    flat, square = packed(rows, tokenizer.pad_id, 2), padded(rows, tokenizer.pad_id)
    assert pieces_of(flat) == pieces_of(square) == expected

    sizes = [length for pieces in lengths for length in pieces]
    assert flat["position_ids"].tolist() == [[place + 2 for size in sizes for place in range(size)]]
    assert flat["max_length_q"] == flat["max_length_k"] == max(sizes)
    assert torch.equal(flat["cu_seq_lens_q"], flat["cu_seq_lens_k"])
    assert flat["cu_seq_lens_q"].dtype == torch.int32
    assert square["input_ids"].shape == square["labels"].shape == (len(sizes), max(sizes))
    outside = square["attention_mask"] == 0
    assert (square["input_ids"][outside] == tokenizer.pad_id).all()
    assert (square["labels"][outside] == IGNORED).all()


def by_piece(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: None, **given: Any
) -> tuple[torch.Tensor, None]:
    """What flash attention computes from the packed form's names, on a CPU; heads are [1, H, T, D]."""
    assert attention_mask is None and given["max_length_q"] == int(given["cu_seq_lens_q"].diff().max())
    sizes, window = given["cu_seq_lens_q"].diff().tolist(), given.get("sliding_window")
    parts = []
    for one in zip(*(heads.split(sizes, dim=2) for heads in (query, key, value)), strict=True):
        place = torch.arange(one[0].shape[2])
        near = None if window is None else (place[:, None] - place[None]).abs() < window
        parts.append(F.scaled_dot_product_attention(*one, attn_mask=near, scale=given["scaling"]))
    return torch.cat(parts, 2).transpose(1, 2), None


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    AttentionInterface.register("by_piece", by_piece)
    AttentionMaskInterface.register("by_piece", lambda **_: None)
    yield
    AttentionInterface._global_mapping.pop("by_piece")
    AttentionMaskInterface._global_mapping.pop("by_piece")


@EACH
def test_the_loss_of_hugging_faces_model_is_ours(architecture: str, tokenizer: Tokenizer) -> None:
    section = MODELS[architecture].model_validate(tiny(architecture))
    ours, theirs = pair(ARCHITECTURES[architecture].config(section, tokenizer))
    rows = make_rows(LENGTHS, tokenizer)
    micro_batch = bucket(rows, tokenizer)
    expected = ours(micro_batch)[0] / micro_batch.weights.sum()
    for form, attention in (("padded", "sdpa"), ("padded", "eager"), ("packed", "by_piece")):
        theirs.set_attn_implementation(attention)
        batch = FORMS[form](rows, tokenizer.pad_id, unused_positions_of(theirs.config) if form == "packed" else 0)
        torch.testing.assert_close(theirs(**batch).loss, expected, atol=1e-5, rtol=0)
    assert rows.tokens.shape[1] == S


def test_without_attention_by_piece_documents_would_leak(tokenizer: Tokenizer) -> None:
    """Why docs/python.md asks for flash attention with the packed form: Hugging Face's BERT ignores where pieces begin."""
    section = MODELS["bert"].model_validate(tiny("bert"))
    _, theirs = pair(ARCHITECTURES["bert"].config(section, tokenizer))
    rows = make_rows(LENGTHS, tokenizer)
    losses = [theirs(**form(rows, tokenizer.pad_id)).loss for form in (packed, padded)]
    assert not torch.allclose(*losses, atol=1e-3)
