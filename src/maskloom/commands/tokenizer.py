"""Train a WordPiece tokenizer on the training documents of a corpus, and write OUT/tokenizer.json.

Beside it stands tokenizer_config.json, with which AutoTokenizer of Hugging Face takes it as it is.

example:
  maskloom tokenizer data/my_corpus data/my_tokenizer --vocab-size 30522
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from maskloom.commands.arguments import byte_count, positive
from maskloom.data.index.corpus import Index
from maskloom.data.index.loading import load_index
from maskloom.data.order import block_at
from maskloom.errors import UserError
from maskloom.progress import Progress, say
from maskloom.tokenizers.files import write_for_others
from maskloom.tokenizers.tokenizer import SPECIAL_TOKENS, train_tokenizer

MIB = 1 << 20


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("corpus", metavar="CORPUS", help="folder of an index")
    add("out", type=Path, metavar="OUT", help="folder to write tokenizer.json into")
    add("--vocab-size", type=positive, default=30522, help="at most this many ids (default: 30522, as BERT)")
    add("--cased", action="store_true", help="keep case and accents (default: lower-case, as bert-base-uncased)")
    add(
        "--max-bytes",
        type=byte_count,
        default=256 * MIB,
        help="text to learn from, spread over the corpus (default: 256M)",
    )


def run(options: argparse.Namespace) -> int:
    if options.vocab_size <= len(SPECIAL_TOKENS):
        raise UserError(
            f"--vocab-size {options.vocab_size} leaves no id beside the {len(SPECIAL_TOKENS)} special tokens"
        )
    index = load_index(options.corpus)
    with Progress("reading", min(index.header["text_bytes"], options.max_bytes), "MiB", MIB) as progress:
        tokenizer = train_tokenizer(_texts(index, options.max_bytes, progress), options.vocab_size, not options.cased)
    options.out.mkdir(parents=True, exist_ok=True)
    write_for_others(options.out, tokenizer.definition)
    say(f"{options.out / 'tokenizer.json'}: {tokenizer.vocab_size:,} ids")
    return 0


def _texts(index: Index, most_bytes: int, progress: Progress) -> Iterator[str]:
    blocks = index.train_blocks
    for number in range(len(blocks)):
        if progress.done >= most_bytes:
            return
        _, place = block_at(0, index.digest, number, len(blocks))
        for text in index.documents(int(blocks[place]), "train"):
            progress.advance(len(text.encode()))
            yield text
