"""RoBERTa, XLM-R and CamemBERT are Hugging Face's: same names, same first weights, same logits, same gradients."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import PretrainedConfig

from maskloom.config import MODELS
from maskloom.errors import UserError
from maskloom.models.architecture import ARCHITECTURES, longest_piece_of
from maskloom.models.description import check_description
from maskloom.models.kernels import KERNELS
from maskloom.models.layers import ACTIVATIONS
from maskloom.models.masked_lm import new_model, packed
from maskloom.models.outline import parameters_of
from maskloom.tokenizers.base import Tokenizer
from maskloom.train.resume import check_model
from tests.models.parity import (
    S,
    assert_dropout_acts,
    assert_equal_names,
    assert_is_hugging_faces,
    bucket,
    hugging_face_inputs,
    logits_by_piece,
    make_rows,
    pair,
    piece_lengths,
    pieces_of,
)

KIN = ("roberta", "xlm-roberta", "camembert")
each_kin = pytest.mark.parametrize("kind", KIN)
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
LENGTHS = [[32], [7, 25], [12], [3, 9, 20]]


def tiny_config(kind: str, tokenizer: Tokenizer, **more: object) -> PretrainedConfig:
    """Without dropout, and with as many positions as a row of S slots needs."""
    shape = {"max_position_embeddings": S + tokenizer.pad_id + 1, "hidden_dropout_prob": 0.0, **TINY, **more}
    return ARCHITECTURES[kind].config(MODELS[kind](**shape), tokenizer)


def padded_by(pad_id: int, tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, with another id for its padding token."""
    other = copy.copy(tokenizer)
    other.pad_id = pad_id
    return other


@each_kin
@pytest.mark.parametrize("pad_id", [0, 1])
def test_logits_loss_and_gradients_are_hugging_faces(kind: str, pad_id: int, tokenizer: Tokenizer) -> None:
    tokenizer = padded_by(pad_id, tokenizer)
    ours, theirs = pair(tiny_config(kind, tokenizer))
    assert_is_hugging_faces(ours, theirs, LENGTHS, tokenizer)
    # A constant added to all scores of a query changes no weight: what is left in these is rounding.
    for name, parameter in ours.named_parameters():
        if name.endswith("key.bias"):
            assert parameter.grad.abs().max() <= 1e-6, name
    used = torch.arange(S) + pad_id + 1
    positions = ours.roberta.embeddings.position_embeddings.weight.grad.abs().amax(1)
    assert (positions[used] > 0).all()
    assert (positions[: pad_id + 1] == 0).all()


@each_kin
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_the_layers_activation_is_not_the_heads(kind: str, activation: str, tokenizer: Tokenizer) -> None:
    ours, theirs = pair(tiny_config(kind, tokenizer, hidden_act=activation))
    assert_is_hugging_faces(ours, theirs, LENGTHS, tokenizer)


@each_kin
@pytest.mark.parametrize("kernels", KERNELS)
def test_each_kernel_gives_hugging_faces_gradients(kind: str, kernels: str, tokenizer: Tokenizer) -> None:
    ours, theirs = pair(tiny_config(kind, tokenizer))
    ours.kernels = KERNELS[kernels]
    assert_is_hugging_faces(ours, theirs, LENGTHS, tokenizer)


@each_kin
def test_a_row_of_padding_beside_the_text_changes_nothing(kind: str, tokenizer: Tokenizer) -> None:
    """As Hugging Face pads a batch; there it is left out by a mask, and positions do not count it."""
    ours, theirs = pair(tiny_config(kind, tokenizer))
    rows = make_rows([[32], [20], [9]], tokenizer)
    batch = bucket(rows, tokenizer, 5)
    expected = theirs(**hugging_face_inputs(rows, tokenizer)).logits[torch.from_numpy(rows.chosen)]
    torch.testing.assert_close(ours.masked_logits(batch)[batch.weights > 0], expected, atol=1e-5, rtol=0)


@settings(max_examples=8, deadline=None)
@given(lengths=st.lists(piece_lengths(), min_size=1, max_size=3), seed=st.integers(0, 2**16), kind=st.sampled_from(KIN))
def test_packed_rows_equal_their_pieces_one_by_one(
    lengths: list[list[int]], seed: int, kind: str, tokenizer: Tokenizer
) -> None:
    tokenizer = padded_by(1, tokenizer)
    ours, theirs = pair(tiny_config(kind, tokenizer))
    rows = make_rows(lengths, tokenizer, seed)
    with torch.no_grad():
        logits = ours.lm_head(ours.encode(bucket(rows, tokenizer)).view(len(lengths), S, -1))
        for row, slots in pieces_of(rows, lengths):
            alone = torch.from_numpy(rows.input_ids[row, slots])[None].long()
            torch.testing.assert_close(logits[row, slots], theirs(input_ids=alone).logits[0], atol=1e-5, rtol=0)


@each_kin
def test_activation_checkpointing_changes_no_bit(kind: str, tokenizer: Tokenizer) -> None:
    model = new_model(tiny_config(kind, tokenizer, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)).train()
    batch = bucket(make_rows(LENGTHS, tokenizer), tokenizer)
    results = []
    for checkpoints in (False, True):
        model.checkpoints_activations = checkpoints
        model.zero_grad()
        torch.manual_seed(3)
        loss, _ = model(batch)
        loss.backward()
        results.append([loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    assert all(map(torch.equal, *results))


@each_kin
@pytest.mark.parametrize("name", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_acts_in_training_alone_and_follows_the_seed(kind: str, name: str, tokenizer: Tokenizer) -> None:
    assert_dropout_acts(tiny_config(kind, tokenizer, **{name: 0.5}), tokenizer)


@each_kin
def test_names_and_shapes_are_hugging_faces(kind: str, tokenizer: Tokenizer) -> None:
    assert_equal_names(tiny_config(kind, tokenizer))


@each_kin
def test_the_first_weights_are_hugging_faces(kind: str, tokenizer: Tokenizer) -> None:
    """Of each kind of weight: normal by `initializer_range`, ones, or zeros; the padding token's rows are zeros."""
    tokenizer = padded_by(1, tokenizer)
    config = tiny_config(kind, tokenizer, hidden_size=64, intermediate_size=96, initializer_range=0.05)
    torch.manual_seed(7)
    ours = new_model(config)
    torch.manual_seed(7)
    theirs = ARCHITECTURES[kind].hf_class(config)
    modules = dict(ours.named_modules())
    for name, expected in theirs.named_parameters():
        weight = ours.get_parameter(name)
        assert torch.equal(weight, expected), name
        module = modules[name.rpartition(".")[0]]
        if name.endswith("bias"):
            assert not weight.any(), name
        elif isinstance(module, nn.LayerNorm):
            assert (weight == 1).all(), name
        else:
            drawn = weight[torch.arange(len(weight)) != 1] if isinstance(module, nn.Embedding) else weight
            # The standard deviation of n values is off by its n-th part's root of 2 n; five times that is never.
            if "token_type" not in name:
                assert abs(drawn.std() / 0.05 - 1) <= 5 / (2 * drawn.numel()) ** 0.5, name
    embeddings = ours.roberta.embeddings
    assert not embeddings.word_embeddings.weight[1].any()
    assert not embeddings.position_embeddings.weight[1].any()
    assert embeddings.word_embeddings.weight[0].any()


@each_kin
def test_the_bias_of_the_head_is_one_parameter(kind: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = new_model(tiny_config(kind, tokenizer))
    assert model.lm_head.decoder.bias is model.lm_head.bias
    assert model.lm_head.decoder.weight is model.roberta.embeddings.word_embeddings.weight
    names = [name for name, _ in model.named_parameters()]
    assert [name for name in names if name.startswith("lm_head.") and name.endswith("bias")] == [
        "lm_head.bias",
        "lm_head.dense.bias",
        "lm_head.layer_norm.bias",
    ]
    model(bucket(make_rows(LENGTHS, tokenizer), tokenizer))[0].backward()
    assert model.lm_head.bias.grad.abs().max() > 0
    with torch.no_grad():
        model.lm_head.bias.uniform_()
    model.save_pretrained(tmp_path)
    again = packed(ARCHITECTURES[kind].hf_class.from_pretrained(tmp_path))
    for name in ("lm_head.bias", "lm_head.decoder.bias"):
        assert torch.equal(again.state_dict()[name], model.lm_head.bias), name


@each_kin
def test_checkpoints_go_both_ways(kind: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    ours, _ = pair(tiny_config(kind, tokenizer))
    hf_class = ARCHITECTURES[kind].hf_class
    rows = make_rows([[32], [20]], tokenizer)
    batch = bucket(rows, tokenizer)
    ours.save_pretrained(tmp_path / "ours")
    theirs = hf_class.from_pretrained(tmp_path / "ours").eval()
    theirs.save_pretrained(tmp_path / "theirs")
    again = packed(hf_class.from_pretrained(tmp_path / "theirs")).eval()
    expected = ours.masked_logits(batch)
    assert torch.equal(again.masked_logits(batch), expected)
    chosen = theirs(**hugging_face_inputs(rows, tokenizer)).logits[torch.from_numpy(rows.chosen)]
    torch.testing.assert_close(chosen, expected[batch.weights > 0], atol=1e-5, rtol=0)


@each_kin
def test_the_defaults_are_the_base_models(kind: str, tokenizer: Tokenizer) -> None:
    """124.6 million parameters at RoBERTa's 50,265 ids, as published; the vocabulary is what kin differ in."""
    tokenizer = padded_by(1, tokenizer)
    config = ARCHITECTURES[kind].config(MODELS[kind](), tokenizer)
    assert longest_piece_of(config) == 512
    config.vocab_size = 50265
    assert parameters_of(config) == 124_697_433


class TestPositions:
    """Found before a rank starts, by `check_model`."""

    def said(self, kind: str, tokenizer: Tokenizer, run: Path, rows: int, seq_len: int) -> str:
        model = MODELS[kind](max_position_embeddings=rows, **TINY)
        with pytest.raises(UserError) as error:
            check_model(run, None, model, tokenizer, {"phases.0.seq_len": seq_len})
        return str(error.value)

    @each_kin
    def test_514_are_for_512_tokens(self, kind: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
        tokenizer = padded_by(1, tokenizer)
        model = MODELS[kind](max_position_embeddings=514, **TINY)
        assert check_model(tmp_path, None, model, tokenizer, {"phases.0.seq_len": 512})
        for seq_len in (513, 514):
            assert self.said(kind, tokenizer, tmp_path, 514, seq_len) == (
                f"phases.0.seq_len {seq_len}: more than the 512 positions of the model. Of its max_position_embeddings 514 the "
                "first 2 are for no token: positions begin behind the padding token's id, 1. Lower seq_len, or raise "
                f"model.max_position_embeddings to {seq_len + 2}"
            )

    @each_kin
    def test_a_large_id_of_the_padding_token_needs_a_large_table(
        self, kind: str, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        tokenizer = padded_by(tokenizer.vocab_size - 1, tokenizer)
        rows = tokenizer.pad_id
        said = self.said(kind, tokenizer, tmp_path, rows, 16)
        assert "more than the 0 positions of the model" in said
        assert said.endswith(
            "Take a tokenizer whose padding token has a small id, or raise model.max_position_embeddings to "
            f"{tokenizer.vocab_size + 16}"
        )
        model = MODELS[kind](max_position_embeddings=tokenizer.vocab_size + 16, **TINY)
        config = check_model(tmp_path, None, model, tokenizer, {"phases.0.seq_len": 16})
        ours, theirs = pair(config)
        ours.config.hidden_dropout_prob = 0.0
        assert_is_hugging_faces(ours, theirs, [[16], [5, 11]], tokenizer, seq_len=16)


class TestDescription:
    """config.json: what our forward computes loads, and everything else is refused by name."""

    def tree(self, kind: str, **changes: Any) -> dict[str, Any]:
        return {"model_type": kind, "vocab_size": 100, **TINY, **changes}

    @each_kin
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_each_activation(self, kind: str, activation: str, tokenizer: Tokenizer) -> None:
        config = tiny_config(kind, tokenizer)
        config.hidden_act = activation
        check_description(config.to_dict(), "here")
        ours, theirs = pair(config)
        rows = make_rows(LENGTHS, tokenizer)
        batch = bucket(rows, tokenizer)
        with torch.no_grad():
            expected = logits_by_piece(theirs, rows, LENGTHS)
            torch.testing.assert_close(ours.masked_logits(batch)[batch.weights > 0], expected, atol=1e-5, rtol=0)

    @each_kin
    @pytest.mark.parametrize(
        "more", [{"type_vocab_size": 2}, {"layer_norm_eps": 1e-3}, {"chunk_size_feed_forward": 4}, {"use_cache": False}]
    )
    def test_what_is_taken(self, kind: str, more: dict[str, Any], tokenizer: Tokenizer) -> None:
        tree = tiny_config(kind, tokenizer).to_dict() | more
        config = check_description(tree, "here")
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
        assert config.pad_token_id == tokenizer.pad_id
        for key in more.keys() - {"chunk_size_feed_forward", "use_cache"}:
            assert getattr(config, key) == more[key]
        ours, theirs = pair(config)
        assert_is_hugging_faces(ours, theirs, LENGTHS, tokenizer)

    @each_kin
    @pytest.mark.parametrize(
        ("key", "value", "said"),
        [
            ("is_decoder", True, "is_decoder is True (computed: False)"),
            ("add_cross_attention", True, "add_cross_attention is True (computed: False)"),
            ("is_encoder_decoder", True, "is_encoder_decoder is True"),
            ("position_embedding_type", "relative_key", "'relative_key' (computed: 'absolute')"),
            ("position_embedding_type", "relative_key_query", "'relative_key_query' (computed: 'absolute')"),
            ("position_embedding_type", "rotary", "'rotary' (computed: 'absolute')"),
            ("position_embedding_type", None, "position_embedding_type is None"),
            ("hidden_act", "prelu", "hidden_act is 'prelu'"),
            ("hidden_act", None, "hidden_act is None"),
            ("tie_word_embeddings", False, "else lm_head.bias is a weight that nothing reads"),
            ("tie_word_embeddings", 0, "tie_word_embeddings is 0"),
            ("pad_token_id", None, "pad_token_id is None, which is not an id of a token"),
            ("pad_token_id", -1, "pad_token_id is -1"),
            ("pad_token_id", 100, "pad_token_id is 100"),
            ("pad_token_id", True, "pad_token_id is True"),
            ("pad_token_id", "1", "pad_token_id is '1'"),
            ("pad_token_id", [1], "pad_token_id is [1]"),
            ("max_position_embeddings", 2, "max_position_embeddings 2, which leaves no position for a token"),
            ("max_position_embeddings", "514", "max_position_embeddings is '514'"),
            ("type_vocab_size", 0, "type_vocab_size is 0"),
            ("layer_norm_eps", 0, "layer_norm_eps is 0"),
            ("num_attention_heads", 5, "hidden_size 32 is not a multiple of num_attention_heads 5"),
            ("adapters", {"adapters": {}}, None),
            ("rope_theta", 10000.0, "rope_theta is 10000.0"),
            ("attention_window", [512, 512], "attention_window is [512, 512]"),
            ("quantization_config", {"load_in_8bit": True}, "quantization_config is"),
            ("pruned_heads", {"0": [1]}, "pruned_heads is {'0': [1]}"),
            ("auto_map", {"AutoModel": "m.XLMRobertaLoRA"}, "auto_map names code of its own, 'm.XLMRobertaLoRA'"),
        ],
    )
    def test_another_function_is_refused_by_name(self, kind: str, key: str, value: Any, said: str | None) -> None:
        tree = self.tree(kind, **{key: value})
        if said is None:  # a key that Hugging Face's class does not know has no effect there either
            assert check_description(tree, "here").vocab_size == 100
            return
        with pytest.raises(UserError) as error:
            check_description(tree, "model.init here")
        assert said in str(error.value)

    @each_kin
    def test_what_is_missing_has_hugging_faces_default(self, kind: str) -> None:
        config, theirs = check_description(self.tree(kind), "here"), ARCHITECTURES[kind].config_class()
        for key in ("pad_token_id", "max_position_embeddings", "type_vocab_size", "layer_norm_eps", "hidden_act"):
            assert getattr(config, key) == getattr(theirs, key), key
