"""A `vocab.txt`, and what may stand beside it."""

from __future__ import annotations

import json
from pathlib import Path

from maskloom.tokenizers.roles import SETTINGS
from maskloom.tokenizers.wordpiece import SPECIAL_TOKENS
from tests.conftest import WORDS

LETTERS = "abcdefghijklmnopqrstuvwxyzABIéÉßσΣ中文。,.'[]#-123"


TOKENS = list(
    dict.fromkeys(
        [*SPECIAL_TOKENS, "[unused1]", *LETTERS, *("##" + mark for mark in LETTERS), *WORDS, "##er", "##ing", "River"]
    )
)


def write(folder: Path, tokens: list[str] | bytes, **settings_: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = tokens if isinstance(tokens, bytes) else "".join(token + "\n" for token in tokens).encode()
    (folder / "vocab.txt").write_bytes(content)
    if settings_:
        (folder / SETTINGS).write_text(json.dumps(settings_))
    return folder
