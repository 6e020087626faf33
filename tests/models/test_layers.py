"""`post_norm` against Hugging Face's `BertLayer`, at the shapes that BERTs have."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from maskloom.models.attention import piece_mask
from maskloom.models.bert import BERT
from maskloom.models.kernels import KERNELS
from maskloom.models.layers import Dense, Pieces, PostNorm, joined, post_norm, rms_norm
from maskloom.models.masked_lm import PackedLayer, layers_of, new_model

TINY = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 96, "num_hidden_layers": 1, "vocab_size": 8}


def layers(**more: object) -> tuple[PackedLayer, BertLayer, BertConfig]:
    """Ours and Hugging Face's with the same weights, all of them different."""
    dropouts = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(**{**TINY, **dropouts, **more})
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    (ours,) = layers_of(new_model(config))
    theirs = BertLayer(config)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs, config


def settings_of(config: BertConfig, kernels: str, trains: bool) -> PostNorm:
    return BERT.layer_settings(config, KERNELS[kernels], trains)[0]


def one_piece_a_row(rows: int, seq_len: int) -> Pieces:
    mask = piece_mask(torch.zeros(rows * seq_len, dtype=torch.int32), seq_len)
    return Pieces(torch.arange(0, rows * seq_len + 1, seq_len, dtype=torch.int32), mask, seq_len)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu"])
@pytest.mark.parametrize("head_size", [32, 64, 80])
def test_forward_and_backward_are_hugging_faces(head_size: int, activation: str) -> None:
    ours, theirs, config = layers(hidden_size=2 * head_size, hidden_act=activation)
    hidden = torch.randn(3 * 12, 2 * head_size)
    mine, reference = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    settings = settings_of(config, "eager", trains=True)
    result = ours(mine, one_piece_a_row(3, 12), settings)
    expected = theirs(reference.view(3, 12, -1)).flatten(0, 1)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)
    gradient = torch.randn_like(result)
    result.backward(gradient)
    expected.backward(gradient)
    torch.testing.assert_close(mine.grad, reference.grad, atol=1e-4, rtol=0)
    for (name, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, atol=1e-3, rtol=1e-4, msg=name)


@pytest.mark.parametrize("seq_len", [512, 8192])
def test_long_rows(seq_len: int) -> None:
    """The last piece of a long row is what it is alone."""
    ours, _, config = layers(num_attention_heads=1, hidden_size=32)
    settings = settings_of(config, "eager", trains=False)
    last = 100
    numbers = torch.zeros(seq_len, dtype=torch.int32)
    numbers[-last:] = 1
    hidden = torch.randn(seq_len, 32)
    ends = torch.tensor([0, seq_len - last, seq_len], dtype=torch.int32)
    with torch.no_grad():
        packed = ours(hidden, Pieces(ends, piece_mask(numbers, seq_len), seq_len), settings)
        alone = ours(hidden[-last:], one_piece_a_row(1, last), settings)
    torch.testing.assert_close(packed[-last:], alone, atol=1e-5, rtol=0)


def test_one_compilation_serves_every_layer() -> None:
    """What is compiled under ZeRO-3 takes the weights as arguments."""
    counter = CompileCounter()
    run = torch.compile(post_norm, backend=counter, fullgraph=True, dynamic=False)
    hidden, pieces = torch.randn(24, 64), one_piece_a_row(2, 12)
    for _ in range(12):
        layer, _, config = layers()
        layer.run = run
        hidden = layer(hidden, pieces, settings_of(config, "compile", trains=True)).detach()
    assert counter.frame_count == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_is_llamas(dtype: torch.dtype) -> None:
    norm = LlamaRMSNorm(16, eps=1e-3)
    with torch.no_grad():
        norm.weight.add_(torch.randn(16))
    hidden = torch.randn(5, 16).to(dtype)
    found = rms_norm(hidden, Dense.of(norm.to(dtype)), 1e-3)
    unit = torch.finfo(dtype).eps  # theirs is rounded before the product with the weight too
    torch.testing.assert_close(found, norm(hidden), atol=unit, rtol=4 * unit)


@pytest.mark.parametrize("bias", [True, False])
def test_joined_layers_give_their_outputs_beside_each_other(bias: bool) -> None:
    parts = [torch.nn.Linear(6, width, bias=bias) for width in (4, 2, 2)]
    hidden = torch.randn(5, 6)
    found = torch.nn.functional.linear(hidden, *joined([Dense.of(part) for part in parts]))
    torch.testing.assert_close(found, torch.cat([part(hidden) for part in parts], -1))
