"""What the tests of each architecture share: rows of random pieces, and the comparison with Hugging Face's class.

Hugging Face's model runs the pieces one by one, unpadded: positions begin at 0, and a piece has nothing beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import PretrainedConfig

from maskloom.data.batch import MicroBatch, make_micro_batch
from maskloom.data.masking import MaskRule
from maskloom.data.rows import Rows
from maskloom.models.architecture import architecture_of
from maskloom.models.masked_lm import MaskedLM, new_model
from maskloom.tokenizers.base import Tokenizer

RULE = MaskRule(0.15)
S = 32
"""Slots of a row, if a test does not say otherwise."""


def pair(config: PretrainedConfig) -> tuple[MaskedLM, Any]:
    """Our model and Hugging Face's with the same weights: every one of them different, biases and LayerNorm too."""
    torch.manual_seed(0)
    ours, theirs = new_model(config), architecture_of(config).hf_class(config)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs.load_state_dict(ours.state_dict())
    return ours.eval(), theirs.eval()


def make_rows(lengths: list[list[int]], tokenizer: Tokenizer, seed: int = 0, seq_len: int = S) -> Rows:
    """Rows with pieces of these lengths, of random tokens; some are predicted, most of those are [MASK]."""
    rng = np.random.default_rng(seed)
    tokens = np.full((len(lengths), seq_len), tokenizer.pad_id, np.int32)
    starts, chosen = np.zeros((2, len(lengths), seq_len), bool)
    for row, pieces in enumerate(lengths):
        slot = 0
        for length in pieces:
            end = slot + length
            text = rng.choice(tokenizer.random_ids, length - 2)
            tokens[row, slot:end] = [tokenizer.cls_id, *text, tokenizer.sep_id]
            starts[row, slot] = True
            slot = end
        if slot < seq_len:
            starts[row, slot] = True
        maskable = np.flatnonzero(tokenizer.is_maskable[tokens[row]])
        count = int(RULE.count(np.asarray([len(maskable)]))[0])
        chosen[row, rng.choice(maskable, count, replace=False)] = True
    masked = chosen & (rng.random(chosen.shape) < 0.8)
    return Rows(tokens, np.where(masked, np.int32(tokenizer.mask_id), tokens), starts, chosen)


@st.composite
def piece_lengths(draw: st.DrawFn, seq_len: int = S) -> list[int]:
    """Lengths of pieces that fit into one row."""
    lengths: list[int] = []
    while sum(lengths) <= seq_len - 3 and len(lengths) < 5:
        lengths.append(draw(st.integers(3, seq_len - sum(lengths))))
        if draw(st.booleans()):
            break
    return lengths


def bucket(rows: Rows, tokenizer: Tokenizer, size: int | None = None) -> MicroBatch:
    """The rows as one micro-batch, filled up to `size` rows."""
    return make_micro_batch(rows, size or len(rows), RULE.most(rows.tokens.shape[1]), tokenizer)


def hugging_face_inputs(rows: Rows, tokenizer: Tokenizer) -> dict[str, torch.Tensor]:
    """The same rows as padded inputs with an attention mask, for rows of one piece."""
    return {
        "input_ids": torch.from_numpy(rows.input_ids).long(),
        "attention_mask": torch.from_numpy(rows.tokens != tokenizer.pad_id).long(),
        "labels": torch.from_numpy(np.where(rows.chosen, rows.tokens, -100)).long(),
    }


def pieces_of(rows: Rows, lengths: list[list[int]]) -> Iterator[tuple[int, slice]]:
    """Row and slots of each piece."""
    for row, pieces in enumerate(lengths):
        slot = 0
        for length in pieces:
            yield row, slice(slot, slot + length)
            slot += length
        assert slot <= rows.tokens.shape[1]


def logits_by_piece(theirs: Any, rows: Rows, lengths: list[list[int]]) -> torch.Tensor:
    """Hugging Face's logits [K, V] of the predicted tokens, each piece alone."""
    logits = []
    for row, slots in pieces_of(rows, lengths):
        alone = theirs(input_ids=torch.from_numpy(rows.input_ids[row, slots])[None].long()).logits[0]
        logits.append(alone[torch.from_numpy(rows.chosen[row, slots])])
    return torch.cat(logits)


def assert_is_hugging_faces(
    ours: MaskedLM, theirs: Any, lengths: list[list[int]], tokenizer: Tokenizer, **more: Any
) -> None:
    """Logits within 1e-5, the loss too, and gradients within 1e-4 of the largest norm of one.

    Args:
        lengths: of each row's pieces.
        more: what else `make_rows` takes.
    """
    rows = make_rows(lengths, tokenizer, **more)
    batch = bucket(rows, tokenizer)
    expected = logits_by_piece(theirs, rows, lengths)
    assert expected.std() > 0.1  # logits that are all alike would agree by themselves
    is_real = batch.weights > 0
    torch.testing.assert_close(ours.masked_logits(batch)[is_real], expected, atol=1e-5, rtol=0)

    loss_sum, hits = ours(batch)
    expected_loss = F.cross_entropy(expected, batch.targets[is_real])
    loss = loss_sum / batch.weights.sum()
    torch.testing.assert_close(loss, expected_loss, atol=1e-5, rtol=0)
    assert hits == (expected.argmax(-1) == batch.targets[is_real]).sum()
    loss.backward()
    expected_loss.backward()
    assert_equal_gradients(ours, theirs)


def assert_equal_gradients(ours: MaskedLM, theirs: Any) -> None:
    """Gradients of the same names, within 1e-4 of the largest norm of one."""
    reference = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    mine = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert mine.keys() == reference.keys()
    largest = max(gradient.norm() for gradient in reference.values())
    for name, gradient in reference.items():
        assert (mine[name] - gradient).norm() <= 1e-4 * largest, name


def assert_dropout_acts(config: PretrainedConfig, tokenizer: Tokenizer) -> None:
    """The configuration's dropout changes logits in training alone, and follows the seed of torch."""
    model = new_model(config)
    batch = bucket(make_rows([[32], [10, 20]], tokenizer), tokenizer)

    def logits(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return model.masked_logits(batch)

    model.eval()
    assert torch.equal(logits(1), logits(2))
    model.train()
    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))


def assert_equal_names(config: PretrainedConfig) -> None:
    """Names and shapes of all weights are those of Hugging Face's class."""
    ours, theirs = (
        {key: value.shape for key, value in model(config).state_dict().items()}
        for model in (new_model, architecture_of(config).hf_class)
    )
    assert ours == theirs
