"""Models from settings: what follows from the seed, what the settings reach, and what is too large."""

from __future__ import annotations

import pytest
import torch

from maskloom.config import Bert
from maskloom.errors import UserError
from maskloom.models.architecture import ARCHITECTURES
from maskloom.models.base import Architecture
from maskloom.models.build import build_model, check_size, configuration_of
from maskloom.models.masked_lm import count_parameters
from maskloom.tokenizers.base import Tokenizer


class TestBuildModel:
    def test_a_fresh_model_follows_from_the_seed(self, tokenizer: Tokenizer) -> None:
        settings = Bert(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48)
        one, line = build_model(settings, tokenizer, 5)
        same, _ = build_model(settings, tokenizer, 5)
        other, _ = build_model(settings, tokenizer, 6)
        weights = [model.bert.encoder.layer[0].intermediate.dense.weight for model in (one, same, other)]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])
        assert "initialised from seed 5" in line

    def test_a_model_that_no_memory_holds_is_refused(self, tokenizer: Tokenizer) -> None:
        """BERT-base is let through on any machine that runs these tests."""
        check_size(configuration_of(Bert(), tokenizer))
        width, layers = 1 << 15, 1 << 12
        shape = {
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": 64,
            "intermediate_size": width,
        }
        layer = 6 * width**2 + 10 * width  # with a feed-forward as wide as the layer: six biases, two LayerNorms
        embeddings = (tokenizer.vocab_size + 512 + 2 + 2) * width
        head = width**2 + 3 * width + tokenizer.vocab_size
        parameters = layers * layer + embeddings + head
        with pytest.raises(
            UserError,
            match=rf"the model has {parameters:,} parameters.*: lower model.num_hidden_layers or model.hidden_size",
        ):
            check_size(configuration_of(Bert(**shape), tokenizer))

    def test_parameters_are_counted_once_each(self, tokenizer: Tokenizer) -> None:
        model, line = build_model(
            Bert(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48), tokenizer, 0
        )
        vocab, hidden, wide, positions, types = tokenizer.vocab_size, 32, 48, 512, 2
        norm = 2 * hidden
        embeddings = (vocab + positions + types) * hidden + norm
        attention = 4 * (hidden * hidden + hidden) + norm
        feed_forward = (hidden * wide + wide) + (wide * hidden + hidden) + norm
        head = (hidden * hidden + hidden) + norm + vocab  # the decoder's matrix is the embeddings'
        expected = embeddings + attention + feed_forward + head
        assert count_parameters(model) == expected
        assert f"{expected:,} parameters" in line

    def test_the_settings_reach_the_model(self, tokenizer: Tokenizer) -> None:
        settings = Bert(
            hidden_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=40,
            hidden_act="relu",
            max_position_embeddings=70,
            hidden_dropout_prob=0.3,
            attention_probs_dropout_prob=0.2,
            initializer_range=0.5,
            layer_norm_eps=1e-5,
        )
        config = build_model(settings, tokenizer, 0)[0].config
        given = settings.model_dump(exclude={"architecture", "init", "freeze", "vocab_multiple"})
        assert {name: getattr(config, name) for name in given} == given
        assert (config.vocab_size, config.pad_token_id) == (tokenizer.vocab_size, tokenizer.pad_id)


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
@pytest.mark.parametrize("multiple", [1, 64, 400, 401])
def test_the_vocabulary_is_rounded_up(architecture: Architecture, multiple: int, tokenizer: Tokenizer) -> None:
    ids = tokenizer.vocab_size
    config = configuration_of(architecture.settings(vocab_multiple=multiple), tokenizer)
    assert config.vocab_size == min(rows for rows in range(ids, ids + multiple) if rows % multiple == 0)
    assert not hasattr(config, "vocab_multiple")
