"""What a GPU's forward and backward are, as far as it can be seen without one.

Tensors of torch's "meta" device have shapes and no values. The model takes the same way with them as on a GPU
(variable-length attention, padded vocabulary), and whatever asks for a value, and would make a GPU wait, fails.
"""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from maskloom.data.batch import MicroBatch
from maskloom.models.kernels import KERNELS
from maskloom.models.masked_lm import MaskedLM, new_model
from maskloom.tokenizers.base import Tokenizer

from .test_bert import bucket, make_rows, tiny_config

META = torch.device("meta")


def model_on_meta(tokenizer: Tokenizer, kernels: str, **more: object) -> MaskedLM:
    with META:
        model = new_model(tiny_config(tokenizer.vocab_size, hidden_dropout_prob=0.1, **more))
    model.kernels = KERNELS[kernels]
    return model.to(torch.bfloat16).train()


def batch_on_meta(tokenizer: Tokenizer, lengths: list[list[int]]) -> MicroBatch:
    return bucket(make_rows(lengths, tokenizer), tokenizer).to(META)


@pytest.mark.parametrize("checkpoints", [False, True])
@pytest.mark.parametrize("kernels", KERNELS)
def test_nothing_waits_for_a_value(kernels: str, checkpoints: bool, tokenizer: Tokenizer) -> None:
    model = model_on_meta(tokenizer, kernels)
    model.checkpoints_activations = checkpoints
    batch = batch_on_meta(tokenizer, [[32], [10, 20]])
    with pytest.raises(RuntimeError):  # what the test rests on
        batch.weights.sum().item()
    loss, hits = model(batch)
    loss.backward()
    assert (loss.dtype, hits.dtype) == (torch.float32, torch.int64)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.shape == parameter.shape, name


def test_one_graph_serves_every_number_of_pieces(tokenizer: Tokenizer) -> None:
    """Neither the pieces of a bucket nor a second step compile anything again, and nothing falls out of the graph."""
    model = model_on_meta(tokenizer, "compile")
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=False)
    sizes = set()
    for lengths in ([[32], [32]], [[10, 20], [5, 6, 7]], [[32], [32]], [[4, 4, 4, 4, 4, 4], [30]]):
        batch = batch_on_meta(tokenizer, lengths)
        sizes.add(len(batch.cu_seqlens))
        compiled(batch)
    assert len(sizes) == 3
    assert counter.frame_count == 1


def test_the_vocabulary_is_padded_to_a_multiple_of_64(tokenizer: Tokenizer) -> None:
    decoder = model_on_meta(tokenizer, "eager").cls.predictions.decoder
    assert tokenizer.vocab_size % 64
    assert decoder(torch.empty(3, 32, dtype=torch.bfloat16, device=META)).shape == (
        3,
        -(-tokenizer.vocab_size // 64) * 64,
    )
    assert decoder.weight.shape[0] == tokenizer.vocab_size
