"""`python benchmarks/cloze.py`: a model's hits beside those of the most frequent tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from cloze.command import main
from transformers import BertConfig, BertForMaskedLM

from maskloom.data.index.corpus import Index
from maskloom.errors import UserError
from maskloom.tokenizers.base import Tokenizer


def word_of(tokenizer: Tokenizer) -> str:
    """A word that is one token."""
    return next(token for token in sorted(tokenizer.vocabulary) if token.isalpha() and len(token) > 1)


@pytest.fixture
def model_dir(tokenizer: Tokenizer, tokenizer_dir: Path, tmp_path: Path) -> Path:
    """A model whose likeliest token is always one and the same, whatever it reads: `word_of`."""
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = BertForMaskedLM(BertConfig(vocab_size=tokenizer.vocab_size, max_position_embeddings=64, **shape))
    with torch.no_grad():
        model.cls.predictions.bias[tokenizer.vocabulary[word_of(tokenizer)]] = 100.0
    shutil.copytree(tokenizer_dir, tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_hits_are_counted_and_known_sentences_left_out(
    model_dir: Path,
    corpus_dir: Path,
    index: Index,
    tokenizer: Tokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    document = index.documents(int(index.train_blocks[0]), "train")[0]
    words = " ".join(document.split()[:12])
    known = words.partition(" ")
    word = word_of(tokenizer)
    frame = f"{word} [MASK]{f' {word}' * 20}"  # which the text does not have
    lines = [f"[MASK] {known[2]}\t{known[0]}", f"{frame}\t{word}", f"{frame}\tzq9"]
    sentences = tmp_path / "sentences.tsv"
    sentences.write_text("\n".join(lines) + "\n")
    arguments = [str(model_dir), str(corpus_dir), "--sentences", str(sentences)]
    assert main([*arguments, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["sentences"], figures["left_out"]) == (2, 1)
    assert figures["hits"] == 1
    assert main([*arguments, "--show"]) == 0
    printed = capsys.readouterr().out
    assert "1 sentence(s) left out" in printed
    assert "they are not one token: zq9" in printed
    sentences.write_text(lines[0] + "\n")
    with pytest.raises(UserError, match="has every sentence"):
        main(arguments)
