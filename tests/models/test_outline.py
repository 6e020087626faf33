"""Names, shapes and numbers of weights without the weights, beside those of Hugging Face's model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BertForMaskedLM

from maskloom.errors import UserError
from maskloom.models.masked_lm import count_parameters
from maskloom.models.outline import empty_model, outline_of, parameters_of
from maskloom.tokenizers.base import Tokenizer
from tests.models.test_bert import tiny_config

SHAPES = pytest.mark.parametrize(
    "more",
    [
        {},
        {"num_hidden_layers": 1, "type_vocab_size": 5, "intermediate_size": 7, "max_position_embeddings": 9},
        {"num_hidden_layers": 5, "tie_word_embeddings": False},
    ],
)


@SHAPES
def test_names_and_shapes_are_hugging_faces(more: dict[str, Any], tokenizer: Tokenizer) -> None:
    config = tiny_config(tokenizer.vocab_size, **more)
    theirs = {name: tuple(value.shape) for name, value in BertForMaskedLM(config).state_dict().items()}
    outline = outline_of(config)
    assert outline.shapes == theirs
    assert outline.layer_prefix == "bert.encoder.layer."
    assert (outline.embedding, outline.decoder) == (
        "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.weight",
    )
    head = {name for name in theirs if name.startswith("cls.")}
    assert {name for name in theirs if outline.is_of_the_head(name)} == head


@SHAPES
def test_parameters_are_counted_from_two_layers(more: dict[str, Any], tokenizer: Tokenizer) -> None:
    config = tiny_config(tokenizer.vocab_size, **more)
    assert parameters_of(config) == count_parameters(BertForMaskedLM(config))


def test_fewer_layers_leave_the_configuration_alone(tokenizer: Tokenizer) -> None:
    config = tiny_config(tokenizer.vocab_size, num_hidden_layers=10**9)
    numbers = {name.split(".")[3] for name in outline_of(config, 3).shapes if ".layer." in name}
    assert numbers == {"0", "1", "2"}
    assert config.num_hidden_layers == 10**9


def test_it_takes_no_memory_and_draws_nothing(tokenizer: Tokenizer) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    model = empty_model(tiny_config(tokenizer.vocab_size, hidden_size=1 << 16, num_attention_heads=64))
    assert torch.equal(torch.rand(1), expected)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_sizes_beyond_any_tensor_are_refused() -> None:
    huge = {"hidden_size": 2**31 - 2, "num_attention_heads": 2, "intermediate_size": 2**31 - 1}
    with pytest.raises(UserError, match="the model's sizes are larger than any tensor's"):
        outline_of(tiny_config(2**31 - 1, **huge))


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        ("module._orig_mod.bert.encoder.layer.0.x", "bert.encoder.layer.0.x"),
        ("bert.embeddings.LayerNorm.gamma", "bert.embeddings.LayerNorm.weight"),
        ("cls.predictions.bias", "cls.predictions.bias"),
    ],
)
def test_what_files_call_them(given: str, ours: str, tokenizer: Tokenizer) -> None:
    assert outline_of(tiny_config(tokenizer.vocab_size)).names.of([given]) == {given: ours}


def test_a_bare_encoder_has_no_prefix(tokenizer: Tokenizer) -> None:
    names = outline_of(tiny_config(tokenizer.vocab_size)).names
    bare = ["embeddings.word_embeddings.weight", "encoder.layer.0.x", "pooler.dense.weight", "classifier.weight"]
    assert list(names.of(bare).values()) == [f"bert.{name}" for name in bare[:3]] + bare[3:]
