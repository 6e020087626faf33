"""Models of any architecture of Hugging Face's, and what is said of those that are not masked language models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertLMHeadModel,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    GPT2Config,
    GPT2LMHeadModel,
    MPNetConfig,
    MPNetForMaskedLM,
    PreTrainedModel,
)

from maskloom.errors import UserError
from maskloom.models.foreign import check_rows, load_foreign, longest_piece_in
from maskloom.tokenizers.base import Tokenizer

SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 400,
}


def saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("model", "longest"),
    [
        (ElectraForMaskedLM(ElectraConfig(**SHAPE, embedding_size=8, max_position_embeddings=40)), 40),
        (DebertaV2ForMaskedLM(DebertaV2Config(**SHAPE, relative_attention=True, max_position_embeddings=50)), 50),
        (
            MPNetForMaskedLM(MPNetConfig(**SHAPE, max_position_embeddings=60)),
            58,
        ),  # positions begin behind the padding's id
    ],
    ids=["electra", "deberta", "mpnet"],
)
def test_weights_and_length(model: PreTrainedModel, longest: int, tmp_path: Path) -> None:
    found = load_foreign(saved(model, tmp_path), "it")
    assert type(found) is type(model)
    assert not found.training
    for name, weight in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], weight), name
    assert longest_piece_in(found) == longest
    found(input_ids=torch.ones(1, longest, dtype=torch.int64))


def test_a_model_that_predicts_the_next_token(tmp_path: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(UserError, match="it is a 'gpt2' model, and Hugging Face has no class that predicts its masked"):
        load_foreign(saved(model, tmp_path), "it")


def test_a_decoder(tmp_path: Path) -> None:
    shape = {key: value for key, value in SHAPE.items() if key != "vocab_size"}
    with pytest.raises(UserError, match=r"it has a decoder \(a 'bert' model\)"):
        load_foreign(
            saved(BertLMHeadModel(BertConfig(**shape, vocab_size=50, is_decoder=True)), tmp_path / "bert"), "it"
        )
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    bart = BartForConditionalGeneration(BartConfig(vocab_size=50, d_model=16, **layers, **heads))
    with pytest.raises(UserError, match=r"it has a decoder \(a 'bart' model\)"):
        load_foreign(saved(bart, tmp_path / "bart"), "it")


def test_a_head_of_another_task(tmp_path: Path) -> None:
    model = ElectraForPreTraining(ElectraConfig(**SHAPE, embedding_size=8))
    with pytest.raises(
        UserError, match=r"is not a trained ElectraForMaskedLM: it lacks .* has no head for masked tokens"
    ):
        load_foreign(saved(model, tmp_path), "it")


@pytest.mark.parametrize("fault", ["no weights", "damaged", "sizes", "code of its own"])
def test_what_cannot_be_loaded(fault: str, tmp_path: Path) -> None:
    saved(ElectraForMaskedLM(ElectraConfig(**SHAPE, embedding_size=8)), tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    tree = json.loads(config.read_text())
    if fault == "no weights":
        weights.unlink()
    elif fault == "damaged":
        weights.write_bytes(weights.read_bytes()[:50])
    elif fault == "sizes":
        tree["intermediate_size"] = 24
    else:
        (tmp_path / "own.py").write_text("raise SystemExit('code was run')")
        tree |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForMaskedLM": "own.M"}}
    config.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"cannot be loaded|no class that predicts"):
        load_foreign(tmp_path, "it")


def test_a_tokenizer_with_more_ids_than_rows(tokenizer: Tokenizer) -> None:
    model = ElectraForMaskedLM(ElectraConfig(**{**SHAPE, "vocab_size": tokenizer.vocab_size - 1}, embedding_size=8))
    with pytest.raises(
        UserError, match=f"the tokenizer has {tokenizer.vocab_size} ids, the model {tokenizer.vocab_size - 1}"
    ):
        check_rows(model, tokenizer, "it")
