"""Three tiny models with tokenizers of three kinds, untrained, as folders that transformers loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    DistilBertConfig,
    DistilBertForMaskedLM,
    MPNetConfig,
    MPNetForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from maskloom.models.foreign import load_foreign, longest_piece_in, tokenizer_beside
from maskloom.scoring.models import Scored
from maskloom.tokenizers import TOKENIZERS
from maskloom.tokenizers.loading import tokenizer_of_definition

KINDS = {"wordpiece": "distilbert", "byte-bpe": "roberta", "unigram": "mpnet"}
"""Kind of tokenizer -> kind of model."""
MOST_TOKENS = 64

TEXTS = [
    "The river, the mountain and the machine: don't they read? They do. It returns (every) value.",
    "A quiet tree 😀😀 holds 3.14 stones... naïve Ångström व्हे\n\n\n  中文文本，没有空格。 End of it.",
    "",
    " \n\t ",
    "word " * 150 + "x" * 60 + " and " + "word\n" * 40,
    "one",
    "Some water returns before every small wind, while a large token waits.",
    "it's quiet (and bright); the gradient learns between stones!",
    "\tpaper\r\n  writes -- numbers: 12, 7 and 2048.",
]
"""Emoji, Chinese, marks, empty documents, a word that is too long, a text that needs several pieces, and a single word."""


def tiny_model(kind: str, vocab_size: int) -> PreTrainedModel:
    torch.manual_seed(len(kind))
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    if kind == "distilbert":
        model = DistilBertForMaskedLM(
            DistilBertConfig(
                vocab_size=vocab_size, dim=32, n_layers=2, n_heads=2, hidden_dim=48, max_position_embeddings=MOST_TOKENS
            )
        )
    elif kind == "roberta":  # of its positions, two are never used
        model = RobertaForMaskedLM(
            RobertaConfig(vocab_size=vocab_size, max_position_embeddings=MOST_TOKENS + 10, type_vocab_size=1, **shape)
        )
    else:
        model = MPNetForMaskedLM(MPNetConfig(vocab_size=vocab_size, max_position_embeddings=MOST_TOKENS + 20, **shape))
    for weight in model.parameters():  # so that predictions differ from token to token
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


@pytest.fixture(scope="session")
def models_dir(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with the names of `KINDS`."""
    folder = tmp_path_factory.mktemp("models")
    for kind, of_model in KINDS.items():
        train = TOKENIZERS[kind].train
        assert train is not None
        definition = train([*documents[:100], *TEXTS[:2]], 600, None)
        tokenizer = tokenizer_of_definition(definition, kind)
        (folder / kind).mkdir()
        (folder / kind / "tokenizer.json").write_text(definition, encoding="utf-8")
        roles = {f"{role}_token": token for role, token in tokenizer.roles.by_role().items()}
        tokenizer_file = str(folder / kind / "tokenizer.json")
        PreTrainedTokenizerFast(tokenizer_file=tokenizer_file, **roles).save_pretrained(folder / kind)
        tiny_model(of_model, tokenizer.vocab_size).save_pretrained(folder / kind)
    return folder


@pytest.fixture(scope="session")
def scored(models_dir: Path) -> list[Scored]:
    """The models to score."""
    found = []
    for kind in KINDS:
        model = load_foreign(models_dir / kind, kind)
        found.append(Scored(kind, model, tokenizer_beside(models_dir / kind, kind), longest_piece_in(model)))
    return found
