"""The text of the measurements: what is prepared is not prepared again, and can be taken along without what it was made of."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from maskloom.bench import text
from maskloom.data.writing.passes import Options
from maskloom.data.writing.shards import write_shards
from tests.conftest import same_tokenizer


def test_tokens_and_tokenizer_are_enough(documents: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "input.txt").write_text("\n\n".join(documents[:60]).replace("\r", " "))
    asked: list[list[str]] = []

    def small(inputs: list[str], out: Path, options: Options, processes: int) -> None:
        asked.append(inputs)
        write_shards(
            [str(tmp_path / "input.txt")], out, Options(layout="blank-line", block_bytes=options.block_bytes), 1
        )

    monkeypatch.setattr(text, "write_shards", small)
    (tmp_path / "tokenizer-300").mkdir()
    same_tokenizer(documents, 300).save(tmp_path / "tokenizer-300" / "tokenizer.json")
    made = text.prepare(tmp_path, 300, 4096, 1)
    index, _ = made.open()
    assert asked == [["documentation:"]]
    shutil.rmtree(tmp_path / "text-4096")
    again, _ = text.prepare(tmp_path, 300, 4096, 1).open()
    assert again.digest == index.digest
    assert len(asked) == 1
    assert not (tmp_path / "text-4096").exists()
