"""Releases 4 and 5 of Transformers read what we write of a ModernBERT, and we read what they write."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ModernBertConfig, ModernBertForMaskedLM

from maskloom.config import ModernBert
from maskloom.errors import UserError
from maskloom.models.build import build_defined, build_model, save_definition
from maskloom.models.description import check_description
from maskloom.tokenizers.base import Tokenizer
from tests.models.test_modernbert import FULL, SHAPE, WINDOW, tiny_config


def test_a_definition_is_read_as_it_was_written(tokenizer: Tokenizer, tmp_path: Path) -> None:
    given = {"layer_types": [WINDOW, FULL, WINDOW], "global_rope_theta": 500.0, "local_rope_theta": 20.0}
    model, _ = build_model(ModernBert(**SHAPE, **given, local_attention=17, decoder_bias=False), tokenizer, 0)
    save_definition(model, tokenizer, tmp_path)
    again = build_defined(tmp_path)
    for name in ("layer_types", "rope_parameters", "local_attention", "decoder_bias", "pad_token_id", "sep_token_id"):
        assert getattr(again.config, name) == getattr(model.config, name), name
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }


@pytest.mark.parametrize(
    ("given", "every"),
    [
        ({}, 3),
        ({"global_attn_every_n_layers": 2}, 2),
        ({"global_attn_every_n_layers": 7}, 7),
        ({"layer_types": [FULL] * 3}, 1),
        ({"layer_types": [FULL, WINDOW, FULL]}, 2),
        ({"layer_types": [WINDOW, FULL, WINDOW]}, None),  # for which earlier releases have no words: they raise
        ({"layer_types": [WINDOW] * 3}, None),
    ],
)
def test_what_is_written_has_the_words_of_earlier_releases(
    given: dict[str, Any], every: int | None, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    thetas = {"global_rope_theta": 500.0, "local_rope_theta": 20.0}
    model, _ = build_model(ModernBert(**SHAPE, **given, **thetas), tokenizer, 0)
    save_definition(model, tokenizer, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert {key: written[key] for key in thetas} == thetas
    assert written["global_attn_every_n_layers"] == every
    assert written["rope_parameters"][FULL] == {"rope_type": "default", "rope_theta": 500.0}
    assert written["rope_parameters"][WINDOW] == {"rope_type": "default", "rope_theta": 20.0}
    read = ModernBertConfig.from_pretrained(tmp_path)
    assert (read.layer_types, read.rope_parameters) == (model.config.layer_types, model.config.rope_parameters)
    ends = (tokenizer.cls_id, tokenizer.sep_id)
    assert (read.pad_token_id, read.bos_token_id, read.eos_token_id) == (tokenizer.pad_id, *ends)
    assert (read.cls_token_id, read.sep_token_id) == ends


PUBLISHED = {
    "model_type": "modernbert", "architectures": ["ModernBertForMaskedLM"], "vocab_size": 50368, "hidden_size": 768,
    "num_hidden_layers": 22, "num_attention_heads": 12, "intermediate_size": 1152, "max_position_embeddings": 8192,
    "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 50281, "classifier_activation": "gelu",
    "classifier_bias": False, "classifier_dropout": 0.0, "classifier_pooling": "mean", "cls_token_id": 50281,
    "decoder_bias": True, "deterministic_flash_attn": False, "embedding_dropout": 0.0, "eos_token_id": 50282,
    "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "gradient_checkpointing": False,
    "hidden_activation": "gelu", "initializer_cutoff_factor": 2.0, "initializer_range": 0.02, "layer_norm_eps": 1e-05,
    "local_attention": 128, "local_rope_theta": 10000.0, "mlp_bias": False, "mlp_dropout": 0.0, "norm_bias": False,
    "norm_eps": 1e-05, "pad_token_id": 50283, "position_embedding_type": "absolute", "reference_compile": None,
    "repad_logits_with_grad": False, "sep_token_id": 50282, "sparse_pred_ignore_index": -100, "sparse_prediction": False,
    "tie_word_embeddings": True, "torch_dtype": "float32", "transformers_version": "4.48.0",
}  # fmt: skip
"""As files of release 4 are."""


def test_a_published_description_is_the_default() -> None:
    read = check_description(PUBLISHED, "M")
    expected = ModernBertConfig()
    for name in ModernBert.model_fields.keys() & vars(expected).keys() - {"architecture"}:
        assert getattr(read, name) == getattr(expected, name), name
    assert (read.layer_types, read.rope_parameters) == (expected.layer_types, expected.rope_parameters)
    assert read.pad_token_id == 50283
    thetas = {"global_rope_theta": 10000, "local_rope_theta": 500.0, "global_attn_every_n_layers": 4}
    read = check_description(PUBLISHED | thetas, "M")
    assert read.rope_parameters[FULL]["rope_theta"] == 10_000.0
    assert read.rope_parameters[WINDOW]["rope_theta"] == 500.0
    assert [number for number, kind in enumerate(read.layer_types) if kind == FULL] == [0, 4, 8, 12, 16, 20]


def rope(**full: Any) -> dict[str, Any]:
    return {"rope_parameters": {FULL: {"rope_type": "default", "rope_theta": 160000.0, **full}}}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"layer_types": [FULL] * 21}, "layer_types names 21 layers, and num_hidden_layers is 22"),
        ({"layer_types": ["chunked_attention"] * 22}, "layer_types has 'chunked_attention'"),
        ({"layer_types": FULL}, "which is not a list"),
        ({"layer_types": [FULL] * 22}, "global_attn_every_n_layers 3 and layer_types say different things"),
        ({"global_attn_every_n_layers": 0}, "global_attn_every_n_layers is 0"),
        ({"global_attn_every_n_layers": None}, "there are no layer_types in its place"),
        ({"num_hidden_layers": 1 << 30}, "num_hidden_layers is 1073741824, more than 4,096"),
        (rope(rope_type="yarn"), "rope_parameters.full_attention has 'rope_type': 'yarn' (computed: 'default')"),
        (rope(rope_type="linear", factor=2.0), "has 'factor': 2.0"),
        (rope(rope_theta=math.nan), "rope_theta is nan, which is not a number between 0.001 and"),
        (
            rope(rope_theta=10_000.0),
            "global_rope_theta is 160000.0, and rope_parameters.full_attention.rope_theta is 1",
        ),
        ({"rope_parameters": {"rope_type": "default"}}, "computed: an object with"),
        ({"rope_parameters": {FULL: "default"}}, "rope_parameters.full_attention is 'default', which is not an object"),
        ({"rope_parameters": {WINDOW: None}}, "rope_parameters.sliding_attention is None, which is not an object"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling is {"),
        ({"rope_theta": 5.0}, "rope_theta is 5.0, which no 'modernbert' model has"),
        (rope(rope_theta=1e-300), "rope_theta is 1e-300, which is not a number between 0.001 and"),
        ({"global_rope_theta": 0}, "global_rope_theta is 0, which is not a number between 0.001 and"),
        ({"local_attention": 1}, "local_attention is 1, and no slot would see another one"),
        ({"hidden_size": math.nan}, "hidden_size is NaN, which is not a whole number"),
        ({"num_attention_heads": math.inf}, "num_attention_heads is inf, which is not a whole number"),
        ({"sliding_window": 32}, "sliding_window is 32 (computed: 64"),
        ({"head_dim": 32}, "head_dim is 32 (computed: 64"),
        ({"num_attention_heads": 256}, "a head has 3 elements"),
        ({"hidden_activation": "xielu"}, "hidden_activation is 'xielu' (computed: one of"),
        ({"norm_bias": 1}, "norm_bias is 1 (computed: True or False)"),
    ],
)
def test_what_our_forward_does_not_compute_is_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(
        UserError, match=r"M: its config\.json describes a model that maskloom does not compute"
    ) as error:
        check_description(PUBLISHED | more, "M")
    assert said in str(error.value)


@pytest.mark.parametrize(
    "more",
    [
        {"sliding_window": 64, "head_dim": 64, "rope_scaling": None},
        {"global_attn_every_n_layers": None, "layer_types": [WINDOW] * 22},
        {"pad_token_id": 60_000},
        {"rope_parameters": {FULL: {"rope_type": "default"}}},
        {"rope_scaling": {"type": "default"}},
    ],
)
def test_what_changes_nothing_is_taken(more: dict[str, Any]) -> None:
    read = check_description(PUBLISHED | more, "M")
    assert read.local_attention == 128
    assert read.pad_token_id in (50283, None)


def test_warm_start_may_set_theta_and_positions(tokenizer: Tokenizer, tmp_path: Path) -> None:
    theirs = ModernBertForMaskedLM(tiny_config(tokenizer, global_rope_theta=10_000.0))
    theirs.save_pretrained(tmp_path)
    kept, _ = build_model(ModernBert(init=str(tmp_path)), tokenizer, 0)
    longer = ModernBert(init=str(tmp_path), global_rope_theta=160_000.0, max_position_embeddings=256)
    changed, _ = build_model(longer, tokenizer, 0)
    for model, theta, positions in ((kept, 10_000.0, 64), (changed, 160_000.0, 256)):
        assert model.config.rope_parameters[FULL]["rope_theta"] == theta
        assert model.config.max_position_embeddings == positions
    for name, weight in theirs.state_dict().items():
        assert torch.equal(changed.state_dict()[name], weight), name
    with pytest.raises(ValueError, match="init takes the shape from its checkpoint: remove local_rope_theta"):
        ModernBert(init=str(tmp_path), local_rope_theta=1.0)
