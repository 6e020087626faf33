"""A corpus and a tokenizer for the other examples: the help texts that come with Python, about 700 KB of English.

`make` does from Python what these commands do:

    maskloom shards help.jsonl shards --block-bytes 8KiB --max-document-bytes 4KiB
    maskloom tokenizer shards tokenizer --vocab-size 2000
"""

import json
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics


def make(folder: Path) -> tuple[Path, Path]:
    """The folders of the shards and of the tokenizer; they are made if they are not there."""
    text, shards, tokenizer = folder / "help.jsonl", folder / "shards", folder / "tokenizer"
    if not tokenizer.exists():
        folder.mkdir(parents=True, exist_ok=True)
        text.write_text("".join(json.dumps({"text": topic}) + "\n" for topic in topics.values()), encoding="utf-8")
        maskloom("shards", str(text), str(shards), "--block-bytes", "8KiB", "--max-document-bytes", "4KiB")
        maskloom("tokenizer", str(shards), str(tokenizer), "--vocab-size", "2000")
    return shards, tokenizer


def maskloom(*arguments: str) -> None:
    """Run a command of maskloom, and fail if it fails."""
    subprocess.run([sys.executable, "-m", "maskloom.cli", *arguments], check=True)
