"""Vectors of texts: packed or padded, they are those of Hugging Face's model on each text alone."""

from __future__ import annotations

import numpy as np
import torch

from maskloom.models.architecture import ARCHITECTURES
from maskloom.tasks.encoding import mean_pooled
from maskloom.tokenizers.base import Tokenizer
from tests.architectures import EACH, tiny_model

TEXTS = ["the river", "", "stone " * 100, "a quiet machine writes", *(f"token {'tree ' * size}" for size in range(12))]
SEQ_LEN = 24


@EACH
def test_they_are_means_over_the_tokens_of_each_text(architecture: str, tokenizer: Tokenizer) -> None:
    ours = tiny_model(architecture, tokenizer)
    theirs = ARCHITECTURES[architecture].hf_class(ours.config).eval()
    theirs.load_state_dict(ours.state_dict())
    expected = []
    for text in TEXTS:
        ids = tokenizer.encode([text]).ids[: SEQ_LEN - 2].tolist()
        row = torch.tensor([[tokenizer.cls_id, *ids, tokenizer.sep_id]])
        with torch.no_grad():
            expected.append(theirs.base_model(input_ids=row).last_hidden_state[0].mean(0).numpy())
    for model in (ours, theirs):
        found = mean_pooled(model, tokenizer, TEXTS, SEQ_LEN, 3)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, np.stack(expected), atol=2e-5)


def test_a_model_that_trains_continues_to(tokenizer: Tokenizer) -> None:
    model = tiny_model("bert", tokenizer, hidden_dropout_prob=0.5).train()
    one, two = (mean_pooled(model, tokenizer, TEXTS[:3], SEQ_LEN, 2) for _ in range(2))
    assert model.training
    np.testing.assert_array_equal(one, two)  # no dropout
    assert not any(parameter.grad is not None for parameter in model.parameters())
    assert mean_pooled(model, tokenizer, [], SEQ_LEN, 2).shape == (0, model.config.hidden_size)
