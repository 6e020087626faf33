"""`find_overflow` names the layer that leaves fp16's numbers."""

from __future__ import annotations

import pytest
import torch

from maskloom.config import MODELS
from maskloom.models.build import configuration_of
from maskloom.models.masked_lm import MaskedLM, new_model
from maskloom.models.overflow import find_overflow
from maskloom.tokenizers.base import Tokenizer

from .test_bert import bucket, make_rows, tiny_config


@pytest.fixture
def model(tokenizer: Tokenizer) -> MaskedLM:
    torch.manual_seed(0)
    return new_model(tiny_config(tokenizer.vocab_size)).half().train()


@pytest.mark.parametrize(
    ("weight", "place"),
    [
        ("bert.embeddings.LayerNorm.weight", "the output of the embeddings (bert.embeddings.LayerNorm)"),
        ("bert.encoder.layer.1.output.dense.bias", "the output of layer 1 (bert.encoder.layer.1)"),
        ("cls.predictions.transform.LayerNorm.weight", "the output of the head (cls.predictions.transform)"),
        ("cls.predictions.bias", "the output of the decoder (cls.predictions.decoder)"),
    ],
)
def test_forward(weight: str, place: str, model: MaskedLM, tokenizer: Tokenizer) -> None:
    batch = bucket(make_rows([[32], [10, 20]], tokenizer), tokenizer)
    assert find_overflow(model, batch, 1.0) is None
    with torch.no_grad():
        model.get_parameter(weight)[3] = torch.inf
    assert find_overflow(model, batch, 1.0) == place


@pytest.mark.parametrize(
    ("name", "weight", "place"),
    [
        ("roberta", "roberta.embeddings.LayerNorm.weight", "the embeddings (roberta.embeddings.LayerNorm)"),
        ("xlm-roberta", "roberta.encoder.layer.1.output.dense.bias", "layer 1 (roberta.encoder.layer.1)"),
        ("camembert", "lm_head.layer_norm.weight", "the head (lm_head.layer_norm)"),
        ("roberta", "lm_head.bias", "the decoder (lm_head.decoder)"),
        ("modernbert", "model.embeddings.norm.weight", "the embeddings (model.embeddings.norm)"),
        ("modernbert", "model.layers.1.mlp.Wo.weight", "layer 1 (model.layers.1)"),
        ("modernbert", "head.norm.weight", "the head (head)"),
        ("modernbert", "decoder.bias", "the decoder (decoder)"),
    ],
)
def test_forward_of_other_architectures(name: str, weight: str, place: str, tokenizer: Tokenizer) -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    model = new_model(configuration_of(MODELS[name](architecture=name, **shape), tokenizer)).half().train()
    batch = bucket(make_rows([[32], [10, 20]], tokenizer), tokenizer)
    assert find_overflow(model, batch, 1.0) is None
    with torch.no_grad():
        model.get_parameter(weight)[3] = torch.inf
    assert find_overflow(model, batch, 1.0) == f"the output of {place}"


def test_backward(model: MaskedLM, tokenizer: Tokenizer) -> None:
    """A scale that fp16 has no number for overflows where the gradient begins; gradients of parameters stay as they were."""
    batch = bucket(make_rows([[32], [10, 20]], tokenizer), tokenizer)
    found = find_overflow(model, batch, 1e9)
    assert found == "the gradient at the output of the head (cls.predictions.transform)"
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradient_of_a_parameter(model: MaskedLM, tokenizer: Tokenizer) -> None:
    """An embedding of zeros sends no gradient to the layers before the decoder, but has a large one where their output is."""
    batch = bucket(make_rows([[32], [10, 20]], tokenizer), tokenizer)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.zero_()
        model.cls.predictions.transform.LayerNorm.weight.fill_(2e3)
    assert find_overflow(model, batch, 1.0) is None
    assert find_overflow(model, batch, 1e3) == "the gradient of bert.embeddings.word_embeddings.weight"


def test_padding_of_the_vocabulary_is_not_an_overflow(model: MaskedLM, tokenizer: Tokenizer) -> None:
    model.cls.predictions.decoder.alignment = 64
    batch = bucket(make_rows([[32]], tokenizer), tokenizer)
    assert tokenizer.vocab_size % 64
    assert find_overflow(model, batch, 1.0) is None
