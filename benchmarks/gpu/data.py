"""The text of the check, as token shards with their tokenizer; what is there already is taken.

On a GPU it is what `benchmarks/step.py` trains on: the documentation of the installed packages, about 6 MiB of tokens that can be
taken along. The dry run has this project's own documentation, which is ready in seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from step.cases import BERT_VOCABULARY
from step.text import Text, prepare

from maskloom.data.index.indexing import BLOCK_BYTES
from maskloom.data.index.loading import load_index
from maskloom.data.writing.passes import Options
from maskloom.data.writing.shards import write_shards
from maskloom.tokenizers.training import train_tokenizer

ROOT = Path(__file__).resolve().parents[2]
SMALL_BLOCK_BYTES, SMALL_VOCABULARY = 4 << 10, 1024
HELD_OUT = 0.1


def small_text(folder: Path) -> Text:
    """The paragraphs of this project's README and docs, as text shards, with a tokenizer of their own."""
    shards, tokenizer = folder / "shards", folder / "tokenizer"
    if not (tokenizer / "tokenizer.json").exists():
        pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
        paragraphs = [part for page in pages for part in page.read_text(encoding="utf-8").split("\n\n") if part.strip()]
        folder.mkdir(parents=True, exist_ok=True)
        lines = folder / "paragraphs.jsonl"
        lines.write_text("".join(json.dumps({"text": part}) + "\n" for part in paragraphs), encoding="utf-8")
        write_shards([str(lines)], shards, Options(block_bytes=SMALL_BLOCK_BYTES, val_fraction=HELD_OUT), 1)
        index = load_index(shards)
        made = train_tokenizer(
            (text for block in index.train_blocks for text in index.documents(int(block), "train")), SMALL_VOCABULARY
        )
        tokenizer.mkdir(exist_ok=True)
        made.save(tokenizer / "tokenizer.part")
        (tokenizer / "tokenizer.part").rename(tokenizer / "tokenizer.json")
    return Text(str(shards), str(tokenizer))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.device == "cpu":
        text = small_text(options.folder)
    else:
        import os

        text = prepare(options.folder, BERT_VOCABULARY, BLOCK_BYTES, len(os.sched_getaffinity(0)))
    index, tokenizer = text.open()
    kept = ("documents", "held_out_documents", "text_bytes", "digest")
    about = {**{name: index.header[name] for name in kept}, "vocab_size": tokenizer.vocab_size}
    print(text, about)
    options.out.write_text(
        json.dumps({"corpus": text.corpus, "tokenizer": text.tokenizer, "text": about}), encoding="utf-8"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
