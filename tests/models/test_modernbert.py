"""`MaskedLM` is Hugging Face's `ModernBertForMaskedLM`: same names, same logits, same gradients, same first weights."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ModernBertConfig, ModernBertModel

from maskloom.config import ModernBert
from maskloom.models.attention import Pieces
from maskloom.models.build import build_model
from maskloom.models.kernels import KERNELS
from maskloom.models.masked_lm import MaskedLM, decoder_of, embedding_of, layers_of, new_model
from maskloom.models.rotary import rotary_table
from maskloom.tokenizers.base import Tokenizer
from tests.models.parity import (
    assert_dropout_acts,
    assert_equal_names,
    assert_is_hugging_faces,
    bucket,
    logits_by_piece,
    make_rows,
    pair,
    piece_lengths,
    pieces_of,
)

S = 48
W = 8
"""A slot sees so many to either side."""
LENGTHS = [[S], [2 * W, 2 * W + 1, 15], [3, W, W + 1, W + 2, 10], [20]]
"""Pieces as long as a row, as the window, and shorter than what a slot sees to one side; the last row ends in filling."""
SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
BIASES = ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias")
FULL, WINDOW = "full_attention", "sliding_attention"
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "biases": dict.fromkeys(BIASES, True) | {"decoder_bias": False},
    "eager": {"attn_implementation": "eager"},
    "activations": {"hidden_activation": "silu", "classifier_activation": "relu"},
    "layer types": {"layer_types": [WINDOW, FULL, WINDOW]},
    "odd window": {"local_attention": 2 * W + 1},
    "thetas": {"global_rope_theta": 500.0, "local_rope_theta": 20.0},
    "every second": {"global_attn_every_n_layers": 2},
    "untied": {"tie_word_embeddings": False},
}


def tiny_config(tokenizer: Tokenizer, **more: Any) -> ModernBertConfig:
    given = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 64, "local_attention": 2 * W, **SHAPE}
    return ModernBertConfig(**{**given, "pad_token_id": tokenizer.pad_id, **more})


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_logits_loss_and_gradients_are_hugging_faces(name: str, tokenizer: Tokenizer) -> None:
    ours, theirs = pair(tiny_config(tokenizer, **CONFIGURATIONS[name]))
    assert_is_hugging_faces(ours, theirs, LENGTHS, tokenizer, seq_len=S)


@pytest.mark.parametrize("name", ["default", "biases", "untied"])
def test_names_and_shapes_are_hugging_faces(name: str, tokenizer: Tokenizer) -> None:
    assert_equal_names(tiny_config(tokenizer, **CONFIGURATIONS[name]))


@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(piece_lengths(S), min_size=1, max_size=2), seed=st.integers(0, 2**16))
def test_packed_rows_equal_their_pieces_one_by_one(lengths: list[list[int]], seed: int, tokenizer: Tokenizer) -> None:
    """Every slot, predicted or not."""
    ours, theirs = pair(tiny_config(tokenizer))
    rows = make_rows(lengths, tokenizer, seed, S)
    with torch.no_grad():
        hidden = ours.encode(bucket(rows, tokenizer)).view(len(lengths), S, -1)
        for row, slots in pieces_of(rows, lengths):
            alone = torch.from_numpy(rows.input_ids[row, slots])[None].long()
            expected = theirs.model(input_ids=alone).last_hidden_state[0]
            torch.testing.assert_close(hidden[row, slots], expected, atol=1e-5, rtol=0)


def test_an_odd_window_is_the_even_one_below(tokenizer: Tokenizer) -> None:
    even, odd, wider = (new_model(tiny_config(tokenizer, local_attention=window)).eval() for window in (16, 17, 18))
    for model in (odd, wider):
        model.load_state_dict(even.state_dict())
    batch = bucket(make_rows([[S]], tokenizer, seq_len=S), tokenizer)
    assert torch.equal(odd.encode(batch), even.encode(batch))
    assert not torch.equal(wider.encode(batch), even.encode(batch))


@pytest.mark.parametrize("name", ["embedding_dropout", "attention_dropout", "mlp_dropout"])
def test_dropout_acts_in_training_alone_and_follows_the_seed(name: str, tokenizer: Tokenizer) -> None:
    assert_dropout_acts(tiny_config(tokenizer, **{name: 0.5}), tokenizer)


@pytest.mark.parametrize(
    "names", [["embedding_dropout"], ["attention_dropout"], ["mlp_dropout"]], ids=lambda names: names[0]
)
def test_dropouts_act_where_hugging_faces_do(names: list[str], tokenizer: Tokenizer) -> None:
    """With a probability of 1 nothing is left of what they act on: biases behind it show the place, without chance."""
    ours, theirs = pair(tiny_config(tokenizer, **dict.fromkeys(BIASES, True), **dict.fromkeys(names, 1.0)))
    rows = make_rows(LENGTHS, tokenizer, seq_len=S)
    batch = bucket(rows, tokenizer)
    evaluated = ours.masked_logits(batch)
    logits = ours.train().masked_logits(batch)
    torch.testing.assert_close(
        logits[batch.weights > 0], logits_by_piece(theirs.train(), rows, LENGTHS), atol=1e-5, rtol=0
    )
    assert not torch.allclose(logits, evaluated, atol=1e-2)


def test_attention_dropout_acts_on_the_weights_too(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    from maskloom.models import modernbert

    seen, attend = [], modernbert.attend

    def noting(query: Any, key: Any, value: Any, pieces: Pieces, dropout: float) -> torch.Tensor:
        seen.append(dropout)
        return attend(query, key, value, pieces, dropout)

    monkeypatch.setattr(modernbert, "attend", noting)
    model = new_model(tiny_config(tokenizer, attention_dropout=0.25))
    batch = bucket(make_rows([[32]], tokenizer), tokenizer)
    model.train()(batch)
    model.eval()(batch)
    assert seen == [0.25] * 3 + [0.0] * 3


def gradients(model: MaskedLM, batch: Any, seed: int = 0) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model.zero_grad()
    torch.manual_seed(seed)
    loss, _ = model(batch)
    loss.backward()
    return loss.detach(), [parameter.grad.clone() for parameter in model.parameters()]


def test_activation_checkpointing_changes_no_bit(tokenizer: Tokenizer) -> None:
    dropouts = dict.fromkeys(("embedding_dropout", "attention_dropout", "mlp_dropout"), 0.1)
    model = new_model(tiny_config(tokenizer, **dropouts)).train()
    batch = bucket(make_rows(LENGTHS, tokenizer, seq_len=S), tokenizer)
    kept = gradients(model, batch)
    model.checkpoints_activations = True
    torch.testing.assert_close(gradients(model, batch), kept, atol=0, rtol=0)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", ["default", "biases", "untied"])
def test_kernels_and_a_padded_vocabulary_change_nothing(name: str, kernels: str, tokenizer: Tokenizer) -> None:
    ours, _ = pair(tiny_config(tokenizer, **CONFIGURATIONS[name]))
    batch = bucket(make_rows(LENGTHS, tokenizer, seq_len=S), tokenizer)
    expected = gradients(ours, batch)
    ours.kernels = KERNELS[kernels]
    decoder_of(ours).linear = ours.kernels.linear
    for alignment in (1, 64):
        decoder_of(ours).alignment = alignment
        torch.testing.assert_close(gradients(ours, batch), expected, atol=2e-5, rtol=1e-5)


def test_compiled_code_follows_a_changed_theta(tokenizer: Tokenizer) -> None:
    ours, _ = pair(tiny_config(tokenizer))
    batch = bucket(make_rows(LENGTHS, tokenizer, seq_len=S), tokenizer)
    compiled = copy.deepcopy(ours)
    compiled.compile(backend="eager", dynamic=False)
    losses = []
    for theta in (10_000.0, 500.0, 10_000.0):
        for model in (ours, compiled):
            model.architecture.set_fields(model.config, {"global_rope_theta": theta})
        loss, _ = compiled(batch)
        torch.testing.assert_close(loss, ours(batch)[0])
        losses.append(float(loss))
    assert losses[0] == losses[2] != losses[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(dtype: torch.dtype, tokenizer: Tokenizer) -> None:
    ours, _ = pair(tiny_config(tokenizer))
    batch = bucket(make_rows(LENGTHS, tokenizer, seq_len=S), tokenizer)
    exact, _ = gradients(ours, batch)
    loss, found = gradients(ours.to(dtype), batch)
    assert all(torch.isfinite(gradient).all() for gradient in found)
    torch.testing.assert_close(loss, exact, rtol=16 * torch.finfo(dtype).eps, atol=0)


def test_angles_are_the_configurations_whatever_the_model_is_cast_to(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The buffers of Hugging Face's model lose them: nothing reads those."""
    model = new_model(tiny_config(tokenizer)).bfloat16()
    for name, buffer in model.named_buffers():
        assert "inv_freq" in name
        buffer.fill_(torch.nan)
    seen = []
    run = model.architecture.run

    def noting(hidden: Any, weights: Any, pieces: Pieces, layer: Any) -> torch.Tensor:
        seen.append(pieces.rotary)
        return run(hidden, weights, pieces, layer)

    for layer in layers_of(model):
        monkeypatch.setattr(layer, "run", noting, raising=False)
    batch = bucket(make_rows([[S]], tokenizer, seq_len=S), tokenizer)
    assert torch.isfinite(model(batch)[0])
    for theta, rotary in zip([160_000.0, 10_000.0, 10_000.0], seen, strict=True):
        for found, expected in zip(rotary, rotary_table(batch.positions, 8, theta), strict=True):
            assert torch.equal(found, expected)
            assert found.dtype == torch.float32


# First weights


def cut_normal(cutoff: float) -> float:
    """Standard deviation of a standard normal number that is drawn anew beyond +-cutoff."""
    density = math.exp(-(cutoff**2) / 2) / math.sqrt(2 * math.pi)
    return math.sqrt(1 - 2 * cutoff * density / math.erf(cutoff / math.sqrt(2)))


def assert_drawn(weight: torch.Tensor, sigma: float, cutoff: float) -> None:
    """The deviation is that of a normal cut at +-cutoff sigma, within five standard errors."""
    expected = sigma * cut_normal(cutoff)
    error = 1 / math.sqrt(2 * weight.numel())  # of a normal; a cut one has less
    assert weight.std().item() == pytest.approx(expected, rel=5 * error)
    assert weight.abs().max() <= cutoff * sigma * (1 + 1e-6)


WIDE = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 96}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"tie_word_embeddings": False, "initializer_range": 0.1, "initializer_cutoff_factor": 1.0},
        dict.fromkeys(BIASES, True),
    ],
    ids=["default", "untied", "biases"],
)
def test_first_weights_are_hugging_faces(more: dict[str, Any], tokenizer: Tokenizer) -> None:
    settings = ModernBert(**WIDE, **more)
    model, _ = build_model(settings, tokenizer, 0)
    inner, cutoff = settings.initializer_range, settings.initializer_cutoff_factor
    outer = inner / math.sqrt(2 * settings.num_hidden_layers)
    drawn = {"head.dense.weight": outer, "model.embeddings.tok_embeddings.weight": inner}
    for number in range(settings.num_hidden_layers):
        layer = f"model.layers.{number}."
        drawn |= {f"{layer}attn.Wqkv.weight": inner, f"{layer}mlp.Wi.weight": inner}
        drawn |= {f"{layer}attn.Wo.weight": outer, f"{layer}mlp.Wo.weight": outer}
    if not settings.tie_word_embeddings:
        drawn["decoder.weight"] = outer
    for name, parameter in model.named_parameters():
        if name in drawn:
            assert_drawn(parameter, drawn[name], cutoff)
        else:
            is_bias = name.endswith("bias")
            assert "norm" in name or is_bias, name
            assert torch.equal(parameter, torch.zeros_like(parameter) if is_bias else torch.ones_like(parameter))
    assert (decoder_of(model).weight is embedding_of(model).weight) == settings.tie_word_embeddings


@pytest.mark.parametrize("ties", [True, False])
def test_a_head_that_a_checkpoint_lacks_is_drawn_as_hugging_face_does(
    ties: bool, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    config = tiny_config(tokenizer, **WIDE, tie_word_embeddings=ties)
    ModernBertModel(config).save_pretrained(tmp_path)
    model, line = build_model(ModernBert(init=str(tmp_path)), tokenizer, 0)
    assert "head" in line.partition("newly initialised")[2]
    outer = 0.02 / math.sqrt(2 * WIDE["num_hidden_layers"])
    assert_drawn(model.head.dense.weight, outer, 2.0)
    assert torch.equal(model.head.norm.weight, torch.ones(64))
    assert torch.equal(model.decoder.bias, torch.zeros(tokenizer.vocab_size))
    if ties:
        assert decoder_of(model).weight is embedding_of(model).weight
    else:
        assert_drawn(decoder_of(model).weight, outer, 2.0)
