"""`maskloom tokenizer extend`."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskloom.cli import main
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.extend import is_extension
from maskloom.tokenizers.loading import load_tokenizer
from maskloom.tokenizers.training import train_tokenizer


@pytest.fixture(scope="module")
def small(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that splits most words."""
    folder = tmp_path_factory.mktemp("small")
    train_tokenizer(iter(documents), 90).save(folder / "tokenizer.json")
    return folder


def test_a_tokenizer_and_a_corpus_give_a_longer_tokenizer(
    small: Path, corpus_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tokenizer", "extend", str(small), str(corpus_dir), str(tmp_path / "out"), "--words", "5"]) == 0
    old, longer = load_tokenizer(small), load_tokenizer(tmp_path / "out")
    assert longer.vocab_size == old.vocab_size + 5
    assert is_extension(longer, old)
    assert f"{longer.vocab_size:,} ids, the first {old.vocab_size:,} as they were" in capsys.readouterr().out


def test_what_cannot_be_done_is_said(
    small: Path, corpus_dir: Path, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["tokenizer", "extend", str(small), str(corpus_dir), str(out), "--min-count", "100000"]) == 1
    assert "splits no word that" in capsys.readouterr().err
    assert not out.exists()
    out.write_text("a file")
    assert main(["tokenizer", "extend", str(small), str(corpus_dir), str(out)]) == 1
    assert "is a file" in capsys.readouterr().err


def test_a_corpus_can_be_named_extend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenizer", "./extend", str(tmp_path)]) == 1
    assert "no index at extend/index.json" in capsys.readouterr().err
