"""Folders with a tiny Hugging Face checkpoint, as `maskloom export` writes them."""

from __future__ import annotations

from pathlib import Path

import torch

from maskloom.models.architecture import ARCHITECTURES, longest_piece_of
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.writing import write_for_others
from tests.architectures import tiny_model


def exported(architecture: str, tokenizer: Tokenizer, folder: Path) -> Path:
    """A tiny model of this architecture with its tokenizer."""
    torch.manual_seed(0)
    model, kind = tiny_model(architecture, tokenizer), ARCHITECTURES[architecture]
    plain = kind.hf_class(kind.written(model.config))
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    write_for_others(folder, tokenizer, longest_piece_of(model.config), getattr(model.config, "type_vocab_size", 1) > 1)
    return folder
