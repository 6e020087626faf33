"""What is chosen for the forward before DeepSpeed wraps the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from maskloom.config import Engine
from maskloom.errors import UserError
from maskloom.models.kernels import KERNELS
from maskloom.models.masked_lm import embedding_of, new_model
from maskloom.tokenizers.base import Tokenizer
from maskloom.train.engine.forward import prepare_forward
from tests.architectures import EACH, tiny_model
from tests.models.test_bert import bucket, make_rows, tiny_config


@EACH
def test_the_embeddings_rows_are_added_to_the_decoders_gradient(architecture: str, tokenizer: Tokenizer) -> None:
    """As a few rows or as a whole matrix: the same dense gradient of the weight that both share. The embeddings give nothing to
    the padding token's row, and the decoder does."""
    model = tiny_model(architecture, tokenizer)
    embedding = embedding_of(model)
    assert embedding.padding_idx == tokenizer.pad_id
    gradients = []
    for prepares in (False, True):
        if prepares:
            prepare_forward(model, Engine(zero_stage=1))
        assert embedding.sparse == prepares
        model.zero_grad()
        batch = bucket(make_rows([[32], [7, 20]], tokenizer), tokenizer)
        assert (batch.input_ids == tokenizer.pad_id).any()
        model(batch)[0].backward()
        gradients.append(embedding.weight.grad.clone())
    assert not gradients[1].is_sparse
    assert gradients[1][tokenizer.pad_id].any()
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("tied", "stage", "kernels"), [(False, 1, "eager"), (True, 3, "eager"), (True, 1, "compile")])
def test_elsewhere_its_gradient_is_a_matrix(tied: bool, stage: int, kernels: str, tokenizer: Tokenizer) -> None:
    """Of a weight of its own it would stay sparse; ZeRO-3 and Inductor take none."""
    model = new_model(tiny_config(tokenizer.vocab_size, tie_word_embeddings=tied))
    prepare_forward(model, Engine(zero_stage=stage, kernels=kernels))
    assert not model.bert.embeddings.word_embeddings.sparse
    assert model.kernels.dropout is KERNELS[kernels].dropout


def test_compiled_code_is_not_loaded_from_a_folder_of_everybody(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch's own choice, a name in /tmp, is where somebody else took it first."""
    tmp_path.chmod(0o1777)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"every user may write into .*: set TORCHINDUCTOR_CACHE_DIR"):
        prepare_forward(new_model(tiny_config(tokenizer.vocab_size)), Engine(kernels="compile"))
