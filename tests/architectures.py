"""A tiny model of each architecture."""

from __future__ import annotations

from typing import Any

import pytest

from maskloom.config import MODELS
from maskloom.models.architecture import ARCHITECTURES
from maskloom.models.masked_lm import MaskedLM, new_model
from maskloom.tokenizers.base import Tokenizer

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
# Pieces are longer than the window. Of four layers the first and the last see the whole piece.
WINDOWED = {
    **SHAPE,
    "num_hidden_layers": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "local_attention": 8,
    "global_rope_theta": 1000.0,
    "local_rope_theta": 100.0,
}
TINY = {"bert": SHAPE, "roberta": SHAPE, "xlm-roberta": SHAPE, "camembert": SHAPE, "modernbert": WINDOWED}
"""The section `model` of each, without its name and its dropouts."""

EACH = pytest.mark.parametrize("architecture", TINY)


def tiny(architecture: str, dropout: float = 0.0) -> dict[str, Any]:
    """The section `model` of a tiny run, with this probability for every dropout that the architecture has."""
    dropouts = dict.fromkeys(MODELS[architecture].dropouts, dropout)
    return {"architecture": architecture, **TINY[architecture], **dropouts}


def tiny_model(architecture: str, tokenizer: Tokenizer, **more: Any) -> MaskedLM:
    """The model of such a section, with weights drawn from torch's generator."""
    section = MODELS[architecture].model_validate({**tiny(architecture), **more})
    return new_model(ARCHITECTURES[architecture].config(section, tokenizer))
