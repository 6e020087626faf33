"""The table of architectures: its rows agree with Hugging Face and with the configuration, and names are found in it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import GPT2Config

from maskloom.config import MODELS
from maskloom.errors import UserError
from maskloom.models.architecture import ARCHITECTURES, add, architecture_of, longest_piece_of
from maskloom.models.base import Architecture
from maskloom.models.masked_lm import new_model
from maskloom.tokenizers.base import Tokenizer
from tests.models.test_bert import bucket, make_rows, tiny_config

ROWS = pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)


@ROWS
def test_a_row_stands_under_its_name_with_its_section(architecture: Architecture) -> None:
    assert ARCHITECTURES[architecture.name] is architecture
    assert MODELS[architecture.name] is architecture.settings


@ROWS
def test_every_field_of_a_section_is_one_of_hugging_faces(architecture: Architecture, tokenizer: Tokenizer) -> None:
    settings = architecture.settings()
    config = architecture.config(settings, tokenizer)
    written = architecture.written(config).to_dict()  # what earlier releases called otherwise stands there too
    ours = {"architecture", "init", "freeze", "vocab_multiple"}
    for name, value in settings.model_dump(mode="json", exclude=ours, exclude_none=True).items():
        assert written[name] == value, name
    assert set(architecture.dropouts) <= set(type(settings).model_fields)
    assert config.vocab_size == tokenizer.vocab_size


@ROWS
def test_every_key_of_hugging_faces_configuration_is_judged(architecture: Architecture) -> None:
    """A key that a release of transformers adds is refused until it is put into one of the lists."""
    from maskloom.models.description import COMPUTED, HARMLESS, _known_keys

    description = architecture.description
    judged = {*description.kept, *description.computed, *description.harmless, *description.ids, *architecture.dropouts}
    assert set(_known_keys(architecture.config_class)) <= {*judged, *COMPUTED, *HARMLESS}


def test_what_is_not_in_the_table_is_named() -> None:
    with pytest.raises(UserError, match="'gpt2' is not among the architectures that are known: 'bert'"):
        architecture_of(GPT2Config())


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(ValueError, match="there is an architecture 'bert' already: BertForMaskedLM"):
        add(ARCHITECTURES["bert"])


def test_the_longest_piece_is_the_table_of_positions(tokenizer: Tokenizer) -> None:
    assert longest_piece_of(tiny_config(tokenizer.vocab_size, max_position_embeddings=70)) == 70


def test_what_comes_after_the_last_layer_is_done(tokenizer: Tokenizer) -> None:
    model = new_model(tiny_config(tokenizer.vocab_size)).eval()
    batch = bucket(make_rows([[32]], tokenizer), tokenizer)
    plain = model.encode(batch)
    model.architecture = dataclasses.replace(model.architecture, finish=lambda _, hidden: 2 * hidden)
    assert torch.equal(model.encode(batch), 2 * plain)
