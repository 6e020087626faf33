"""The table of architectures. A further one is a file with one `Architecture`, and a row here.

Your own stays outside of the package: a module that calls `add`, and `--import MODULE` (examples/add_architecture.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from maskloom.config import MODELS
from maskloom.errors import UserError
from maskloom.models.base import Architecture, Description, LayerSettings
from maskloom.models.bert import BERT
from maskloom.models.modernbert import MODERNBERT
from maskloom.models.roberta import CAMEMBERT, ROBERTA, XLM_ROBERTA

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Description",
    "LayerSettings",
    "add",
    "architecture_of",
    "longest_piece_of",
    "unused_positions_of",
]

ARCHITECTURES: dict[str, Architecture] = {
    each.name: each for each in (BERT, ROBERTA, XLM_ROBERTA, CAMEMBERT, MODERNBERT)
}
"""By the name that `model.architecture` and config.json's `model_type` have."""


def add(architecture: Architecture) -> None:
    """Add an architecture, and its section of the configuration. Raises ValueError if its name is taken."""
    name = architecture.name
    if name in ARCHITECTURES:
        raise ValueError(f"there is an architecture {name!r} already: {ARCHITECTURES[name].hf_class.__name__}")
    ARCHITECTURES[name] = architecture
    MODELS[name] = architecture.settings


def architecture_of(config: PretrainedConfig) -> Architecture:
    """The architecture of a Hugging Face configuration. Raises UserError if it is not in the table."""
    try:
        return ARCHITECTURES[config.model_type]
    except KeyError:
        raise UserError(f"{config.model_type!r} is not among the architectures that are known: {known()}") from None


def longest_piece_of(config: PretrainedConfig) -> int:
    """The most slots that a piece may have, by a Hugging Face configuration."""
    return architecture_of(config).longest_piece(config)


def unused_positions_of(config: PretrainedConfig) -> int:
    """How many of a configuration's positions are never used. In some architectures they begin behind the padding token's id."""
    most = longest_piece_of(config)
    return int(getattr(config, "max_position_embeddings", most)) - most


def known() -> str:
    """The names in the table, for a message."""
    return ", ".join(map(repr, ARCHITECTURES))
