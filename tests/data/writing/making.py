"""Small inputs, and what was written of them, for the tests of this folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from maskloom.data.index.corpus import Index
from maskloom.data.writing.passes import Options


def write_jsonl(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    return path


def texts_of(index: Index, split: Any = "train") -> list[str]:
    return [text for block in range(index.header["blocks"]) for text in index.documents(block, split)]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


SMALL = Options(val_fraction=0.2, shard_bytes=6000, block_bytes=1000, deduplicate=True)
