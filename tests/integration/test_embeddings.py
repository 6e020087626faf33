"""The vectors that a probe takes are those that sentence-transformers gives for mean pooling."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskloom.commands.encoders import load_encoder
from maskloom.tasks.encoding import mean_pooled


def test_vectors_are_those_of_sentence_transformers(minilm_dir: Path) -> None:
    """Its weights lack a head. Texts are of different lengths, so that ours packs them and theirs pads."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer import modules

    texts = ["A river.", "The machine writes a large paper on every token of the stone.", ""]
    encoder = load_encoder(str(minilm_dir))
    parts = [modules.Transformer(str(minilm_dir)), modules.Pooling(encoder.model.config.hidden_size, "mean")]
    theirs = sentence_transformers.SentenceTransformer(modules=parts, device="cpu").encode(texts)
    assert mean_pooled(encoder.model, encoder.tokenizer, texts, 64, 2) == pytest.approx(theirs, abs=2e-5)
