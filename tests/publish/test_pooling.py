"""`export --sentence-transformers`: the library loads the folder, and a text's vector is the mean of its tokens'."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from maskloom.cli import main


def test_sentence_transformers_gives_the_mean_of_the_last_hidden_states(
    trained_run: Path, documents: list[str], tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    out = tmp_path / "out"
    assert main(["export", str(trained_run), str(out), "--sentence-transformers"]) == 0
    texts = [documents[0], "a short one", documents[1] * 50]
    loaded = SentenceTransformer(str(out), device="cpu")
    vectors = loaded.encode(texts, convert_to_tensor=True)
    model, tokenizer = AutoModel.from_pretrained(out).eval(), AutoTokenizer.from_pretrained(out)
    longest = model.config.max_position_embeddings
    assert loaded.max_seq_length == longest
    for text, vector in zip(texts, vectors, strict=True):
        with torch.no_grad():
            hidden = model(
                **tokenizer(text, return_tensors="pt", truncation=True, max_length=longest)
            ).last_hidden_state
        torch.testing.assert_close(vector, hidden[0].mean(0), atol=1e-5, rtol=0)
    assert "sentence-transformers" in (out / "README.md").read_text()


def test_a_plain_export_has_none_of_its_files(trained_run: Path, tmp_path: Path) -> None:
    assert main(["export", str(trained_run), str(tmp_path / "out")]) == 0
    assert not (tmp_path / "out" / "modules.json").exists()
    assert not list((tmp_path / "out").glob("*Pooling*"))
