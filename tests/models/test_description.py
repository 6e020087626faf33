"""config.json: what our forward computes loads, and everything else is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig
from transformers.activations import ACT2CLS, ACT2FN

from maskloom.errors import UserError
from maskloom.models.architecture import known
from maskloom.models.bert import BERT
from maskloom.models.build import build_defined
from maskloom.models.description import (
    _known_keys,
    check_description,
    parse_description,
    read_description,
)
from maskloom.models.layers import ACTIVATIONS
from maskloom.models.masked_lm import new_model
from maskloom.tokenizers.base import Tokenizer
from tests.models.test_bert import bucket, hugging_face_inputs, make_rows, pair, tiny_config

SIZES = (*BERT.description.sizes, *BERT.description.more_sizes)
TINY = {
    "model_type": "bert",
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}


def refusal(**changes: Any) -> str:
    tree = {key: value for key, value in {**TINY, **changes}.items() if value is not ...}
    with pytest.raises(UserError) as error:
        check_description(tree, "model.init here")
    assert str(error.value).startswith("model.init here")
    return str(error.value)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_our_forward_computes_each_activation(activation: str, tokenizer: Tokenizer) -> None:
    ours, theirs = pair(tiny_config(tokenizer.vocab_size, hidden_act=activation))
    rows = make_rows([[32], [20]], tokenizer)
    batch = bucket(rows, tokenizer)
    with torch.no_grad():
        expected = theirs(**hugging_face_inputs(rows, tokenizer)).logits[torch.from_numpy(rows.chosen)]
        torch.testing.assert_close(ours.masked_logits(batch)[batch.weights > 0], expected, atol=1e-5, rtol=0)


def test_activations_with_parameters_or_chance_are_the_ones_left_out() -> None:
    def is_plain(name: str) -> bool:
        module = ACT2FN[name]
        return not list(module.parameters()) and not list(module.buffers())

    assert sorted(ACTIVATIONS) == sorted(name for name in ACT2CLS if is_plain(name))


@pytest.mark.parametrize("chunk", [0, 4])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("types", [1, 2, 3])
def test_our_forward_computes_what_is_taken(tied: bool, types: int, chunk: int, tokenizer: Tokenizer) -> None:
    more = {"tie_word_embeddings": tied, "type_vocab_size": types, "chunk_size_feed_forward": chunk}
    config = tiny_config(tokenizer.vocab_size, layer_norm_eps=1e-3, **more)
    check_description(config.to_dict(), "here")
    ours, theirs = pair(config)
    rows = make_rows([[32], [20]], tokenizer)
    batch = bucket(rows, tokenizer)
    with torch.no_grad():
        expected = theirs(**hugging_face_inputs(rows, tokenizer)).logits[torch.from_numpy(rows.chosen)]
        torch.testing.assert_close(ours.masked_logits(batch)[batch.weights > 0], expected, atol=1e-5, rtol=0)


def test_a_key_that_a_later_bert_config_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from maskloom.models import description

    known = {**_known_keys(BertConfig), "norm_kind": "post"}
    monkeypatch.setattr(description, "_known_keys", lambda _: known)
    assert "norm_kind is 'pre', of which maskloom knows nothing" in refusal(norm_kind="pre")
    assert check_description({**TINY, "norm_kind": "post"}, "here").hidden_size == 32


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("is_decoder", True, "is_decoder is True (computed: False)"),
        ("is_decoder", 1, "is_decoder is 1"),
        ("add_cross_attention", True, "add_cross_attention is True"),
        ("is_encoder_decoder", True, "is_encoder_decoder is True"),
        ("position_embedding_type", "relative_key", "position_embedding_type is 'relative_key' (computed: 'absolute')"),
        ("position_embedding_type", "relative_key_query", "'relative_key_query'"),
        ("position_embedding_type", "alibi", "position_embedding_type is 'alibi'"),
        ("position_embedding_type", None, "position_embedding_type is None"),
        ("hidden_act", "prelu", "hidden_act is 'prelu'"),
        ("hidden_act", "geglu", "hidden_act is 'geglu'"),
        ("hidden_act", ["gelu"], "hidden_act is ['gelu']"),
        ("tie_word_embeddings", "false", "tie_word_embeddings is 'false'"),
        ("tie_word_embeddings", 0, "tie_word_embeddings is 0"),
        ("pruned_heads", {"0": [1]}, "pruned_heads is {'0': [1]}"),
        ("quantization_config", {"load_in_8bit": True}, "quantization_config is"),
        ("alibi_starting_size", 512, "alibi_starting_size is 512"),
        ("rope_theta", 10000.0, "rope_theta is 10000.0"),
        ("rope_scaling", {"factor": 2.0}, "rope_scaling is"),
        ("rotary_emb_base", 1000, "rotary_emb_base is 1000"),
        ("per_layer_config", {"0": {}}, "per_layer_config is"),
        ("layer_norm_eps", "1e-12", "layer_norm_eps is '1e-12', which is not a number between 0 and 1"),
        ("layer_norm_eps", float("nan"), "layer_norm_eps is NaN"),
        ("layer_norm_eps", float("inf"), "layer_norm_eps is inf"),
        ("layer_norm_eps", 0, "layer_norm_eps is 0"),
        ("layer_norm_eps", None, "layer_norm_eps is None"),
        ("initializer_range", -0.1, "initializer_range is -0.1"),
        ("num_attention_heads", 5, "hidden_size 32 is not a multiple of num_attention_heads 5"),
        ("auto_map", {"AutoModel": "x--modeling.AlibiBert"}, "auto_map names code of its own, 'x--modeling.AlibiBert'"),
        ("auto_map", {"AutoConfig": "c.C", "AutoTokenizer": "t.T"}, "'c.C', which is not run"),
        (
            "model_type",
            "electra",
            f"is a 'electra' model: only {known()} are supported; one of your own needs --import",
        ),
        ("model_type", "gpt2", "is a 'gpt2' model"),
        ("model_type", 7, "is a 7 model"),
        ("hidden_act", "\x1b[31mred", r"hidden_act is '\x1b[31mred'"),
    ],
)
def test_another_function_is_refused_by_name(key: str, value: Any, said: str) -> None:
    assert said in refusal(**{key: value})


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("value", ["32", -1, 0, 32.0, True, None, 10**12, [32], float("nan"), "9" * 400])
def test_a_size_is_a_whole_number(key: str, value: Any) -> None:
    assert f"{key} is " in refusal(**{key: value})


def test_all_faults_are_listed() -> None:
    said = refusal(hidden_size=..., vocab_size=..., is_decoder=True, num_hidden_layers="2")
    for fault in ("vocab_size is missing", "hidden_size is missing", "is_decoder is True", "num_hidden_layers is '2'"):
        assert fault in said


@pytest.mark.parametrize(
    "more",
    [
        {"use_cache": False, "torch_dtype": "float16", "gradient_checkpointing": True, "_name_or_path": "x"},
        {"id2label": {"0": "A", "1": "B", "2": "C"}, "problem_type": "single_label_classification", "num_labels": 3},
        {"position_embedding_type": "absolute", "pruned_heads": {}, "rope_scaling": None, "sliding_window": False},
        {"auto_map": {"AutoTokenizer": ["t.T", None]}, "directionality": "bidi", "pooler_fc_size": 768},
        {"hidden_dropout_prob": 5, "classifier_dropout": "much", "architectures": "BertModel"},
        {"dtype": "no type", "pad_token_id": -1, "eos_token_id": [1, 2]},
    ],
)
def test_what_changes_nothing_is_ignored(more: dict[str, Any]) -> None:
    config = check_description({**TINY, **more}, "here")
    assert {key: getattr(config, key) for key in TINY} == TINY
    assert config.to_dict() == check_description(TINY, "here").to_dict()


@pytest.mark.parametrize(
    ("classes", "kind"),
    [(["BertForMaskedLM"], None), (None, None), (["DistilBertModel"], "DistilBertModel"), ("X", "X")],
)
def test_without_a_type_its_classes_tell(classes: Any, kind: str | None) -> None:
    if kind is None:
        assert check_description({**TINY, "model_type": None, "architectures": classes}, "here")
    else:
        assert f"is a '{kind}' model" in refusal(model_type=..., architectures=classes)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"3", b"null", b"\xff\xfe{}", b'{"a": ' + b"9" * 5000 + b"}", b"[" * 100_000, b'"\xed\xa0\x80"'],
)
def test_what_is_not_an_object_is_refused(data: bytes) -> None:
    with pytest.raises(UserError, match=r"model\.init here cannot be loaded: its config\.json"):
        parse_description(data, "model.init here")


def test_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="no model has as many"):
        read_description(tmp_path, "here")


def test_a_number_may_be_written_without_a_point() -> None:
    config = check_description({**TINY, "initializer_range": 1}, "here")
    assert (config.initializer_range, type(config.initializer_range)) == (1.0, float)


def test_the_numbers_have_defaults() -> None:
    config = check_description(TINY, "here")
    for key in BERT.description.ranges:
        assert getattr(config, key) == getattr(BertConfig(), key)


def test_a_run_of_such_a_model_says_how_to_resume_it(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A run that began from a decoder trained an encoder: with the computed value it resumes."""
    new_model(tiny_config(tokenizer.vocab_size, pad_token_id=3)).config.save_pretrained(tmp_path)
    tree = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(tree | {"is_decoder": True}))
    with pytest.raises(UserError, match=r"is_decoder is True \(computed: False\).* set them in .*config\.json"):
        build_defined(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(tree | {"hidden_dropout_prob": "much"}))
    with pytest.raises(UserError, match=r"config\.json cannot be read: .*hidden_dropout_prob"):
        build_defined(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(tree))
    assert build_defined(tmp_path).config.pad_token_id == 3
