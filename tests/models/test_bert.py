"""`MaskedLM` is Hugging Face's `BertForMaskedLM`: same names, same logits, same gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForMaskedLM,
    PreTrainedTokenizerFast,
)

from maskloom.data.rows import Rows
from maskloom.models.kernels import KERNELS
from maskloom.models.masked_lm import new_model, packed
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.loading import load_tokenizer
from tests.models.parity import (
    S,
    assert_dropout_acts,
    assert_equal_gradients,
    assert_equal_names,
    bucket,
    hugging_face_inputs,
    make_rows,
    pair,
    piece_lengths,
)

SENTENCE = (
    "After Abraham Lincoln won the November 1860 presidential [MASK] on an anti-slavery platform, an initial seven "
    "slave states declared their secession from the country to form the Confederacy. War broke out in April 1861 when "
    "secessionist forces [MASK] Fort Sumter in South Carolina, just over a month after Lincoln's inauguration."
)


def tiny_config(vocab_size: int, **more: object) -> BertConfig:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    dropouts = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertConfig(**{"vocab_size": vocab_size, "max_position_embeddings": 64, **shape, **dropouts, **more})


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_logits_loss_and_gradients_are_hugging_faces(activation: str, tokenizer: Tokenizer) -> None:
    ours, theirs = pair(tiny_config(tokenizer.vocab_size, hidden_act=activation))
    rows = make_rows([[32], [20], [9], [31], [15]], tokenizer)
    batch, inputs = bucket(rows, tokenizer), hugging_face_inputs(rows, tokenizer)
    output = theirs(**inputs)

    logits = ours.masked_logits(batch)[batch.weights > 0]
    expected = output.logits[torch.from_numpy(rows.chosen)]
    assert expected.std() > 0.1  # logits that are all alike would agree by themselves
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)

    loss_sum, hits = ours(batch)
    loss = loss_sum / batch.weights.sum()
    torch.testing.assert_close(loss, output.loss, atol=1e-5, rtol=0)
    assert hits == (expected.argmax(-1) == batch.targets[batch.weights > 0]).sum()

    loss.backward()
    output.loss.backward()
    assert_equal_gradients(ours, theirs)
    mine = {name: parameter.grad for name, parameter in ours.named_parameters()}
    # A constant added to all scores of a query changes no weight: what is left in these is rounding.
    for name in (name for name in mine if name.endswith("key.bias")):
        assert mine[name].abs().max() <= 1e-6, name


@settings(max_examples=12, deadline=None)
@given(lengths=st.lists(piece_lengths(), min_size=1, max_size=3), seed=st.integers(0, 2**16))
def test_packed_rows_equal_their_pieces_one_by_one(lengths: list[list[int]], seed: int, tokenizer: Tokenizer) -> None:
    ours, theirs = pair(tiny_config(tokenizer.vocab_size))
    rows = make_rows(lengths, tokenizer, seed)
    with torch.no_grad():
        logits = ours.cls(ours.encode(bucket(rows, tokenizer)).view(len(lengths), S, -1))
    for row, pieces in enumerate(lengths):
        slot = 0
        for length in pieces:
            alone = torch.from_numpy(rows.input_ids[row : row + 1, slot : slot + length]).long()
            with torch.no_grad():
                expected = theirs(input_ids=alone).logits[0]  # positions from 0, nothing beside it
            torch.testing.assert_close(logits[row, slot : slot + length], expected, atol=1e-5, rtol=0)
            slot += length


def test_a_piece_does_not_see_its_neighbours_nor_its_place(tokenizer: Tokenizer) -> None:
    ours, _ = pair(tiny_config(tokenizer.vocab_size))
    rows = make_rows([[10, 10, 12]], tokenizer)
    rows.input_ids[0, 10:20] = rows.input_ids[0, :10]
    hidden = ours.encode(bucket(rows, tokenizer))
    torch.testing.assert_close(hidden[10:20], hidden[:10], atol=1e-5, rtol=0)
    rows.input_ids[0, 25] = (rows.input_ids[0, 25] + 1) % tokenizer.vocab_size
    changed = ours.encode(bucket(rows, tokenizer))
    assert torch.equal(changed[:20], hidden[:20])
    assert not torch.equal(changed[20:], hidden[20:])


def test_filling_weighs_nothing(tokenizer: Tokenizer) -> None:
    ours, _ = pair(tiny_config(tokenizer.vocab_size))
    rows = make_rows([[32], [7, 25], [12]], tokenizer)
    results = []
    for size in (3, 5):
        ours.zero_grad()
        loss, hits = ours(bucket(rows, tokenizer, size))
        loss.backward()
        results.append((loss.detach(), hits, [parameter.grad.clone() for parameter in ours.parameters()]))
    (loss, hits, gradients), (padded_loss, padded_hits, padded_gradients) = results
    torch.testing.assert_close(padded_loss, loss, atol=1e-5, rtol=1e-6)
    assert padded_hits == hits
    torch.testing.assert_close(padded_gradients, gradients, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_padded_vocabulary_changes_nothing(kernels: str, tokenizer: Tokenizer) -> None:
    ours, theirs = pair(tiny_config(tokenizer.vocab_size))
    rows = make_rows([[32], [7, 25], [12]], tokenizer)
    ours.kernels = KERNELS[kernels]
    results = []
    for alignment in (1, 64):
        ours.zero_grad()
        ours.cls.predictions.decoder.alignment = alignment
        loss, hits = ours(bucket(rows, tokenizer))
        loss.backward()
        results.append((loss.detach(), hits, [parameter.grad.clone() for parameter in ours.parameters()]))
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-6)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert ours.masked_logits(bucket(rows, tokenizer)).shape[1] == tokenizer.vocab_size


def test_filling_is_never_hit(tokenizer: Tokenizer) -> None:
    ours, _ = pair(tiny_config(tokenizer.vocab_size))
    batch = bucket(make_rows([[12]], tokenizer), tokenizer, 2)
    likeliest = int(batch.targets[0])
    filling = batch.targets[batch.weights == 0]
    for token in (likeliest, int(filling[0])):
        with torch.no_grad():
            ours.cls.predictions.bias.zero_()[token] = 1e4
        assert ours(batch)[1] == ((batch.targets == token) & (batch.weights > 0)).sum()


def test_a_micro_batch_without_a_predicted_token_has_no_loss(tokenizer: Tokenizer) -> None:
    ours, _ = pair(tiny_config(tokenizer.vocab_size))
    rows = make_rows([[32]], tokenizer)
    rows.chosen[:] = False
    loss, hits = ours(bucket(rows, tokenizer))
    assert (loss.item(), hits.item()) == (0.0, 0)


@pytest.mark.parametrize("name", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_acts_in_training_alone_and_follows_the_seed(name: str, tokenizer: Tokenizer) -> None:
    assert_dropout_acts(tiny_config(tokenizer.vocab_size, **{name: 0.5}), tokenizer)


def test_names_and_shapes_are_hugging_faces(tokenizer: Tokenizer) -> None:
    assert_equal_names(tiny_config(tokenizer.vocab_size))


def test_checkpoints_go_both_ways(tokenizer: Tokenizer, tmp_path: Path) -> None:
    ours, _ = pair(tiny_config(tokenizer.vocab_size))
    rows = make_rows([[32], [20]], tokenizer)
    batch, inputs = bucket(rows, tokenizer), hugging_face_inputs(rows, tokenizer)
    ours.save_pretrained(tmp_path / "ours")
    theirs = BertForMaskedLM.from_pretrained(tmp_path / "ours").eval()
    theirs.save_pretrained(tmp_path / "theirs")
    again = packed(BertForMaskedLM.from_pretrained(tmp_path / "theirs")).eval()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], tensor), name
        assert torch.equal(again.state_dict()[name], tensor), name
    expected = ours.masked_logits(batch)
    assert torch.equal(again.masked_logits(batch), expected)
    chosen = torch.from_numpy(rows.chosen)
    torch.testing.assert_close(theirs(**inputs).logits[chosen], expected[batch.weights > 0], atol=1e-5, rtol=0)


def test_reference_walk(minilm_dir: Path) -> None:
    """The published sentence with two masks: shapes, positions, and the loss written out by hand."""
    published = PreTrainedTokenizerFast.from_pretrained(minilm_dir)
    input_ids = published(SENTENCE, return_tensors="pt")["input_ids"]
    assert input_ids.shape == (1, 62)
    tokenizer = load_tokenizer(minilm_dir)
    places = [9, 43]
    assert (input_ids[0] == tokenizer.mask_id).nonzero().flatten().tolist() == places

    torch.manual_seed(0)
    theirs = BertForMaskedLM.from_pretrained(minilm_dir).eval()
    ours = new_model(theirs.config).eval()
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        logits = theirs(input_ids=input_ids).logits
    assert logits.shape == (1, 62, 30522)

    words = published.convert_tokens_to_ids(["election", "attacked"])
    given = input_ids.numpy().astype(np.int32)
    tokens, starts, chosen = given.copy(), np.zeros((1, 62), bool), np.zeros((1, 62), bool)
    tokens[0, places], starts[0, 0], chosen[0, places] = words, True, True
    loss, _ = ours(bucket(Rows(tokens, given, starts, chosen), tokenizer))

    one_hot = F.one_hot(torch.tensor(words), 30522).float()
    by_hand = -(one_hot * logits[0, places].log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(loss.detach() / 2, by_hand, atol=1e-5, rtol=0)
