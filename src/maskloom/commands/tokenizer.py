"""Train a tokenizer on the training documents of a corpus, and write OUT/tokenizer.json.

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
from maskloom.progress import Progress, say
from maskloom.tokenizers.training import train_tokenizer, trainable_kinds
from maskloom.tokenizers.writing import write_for_others

MIB = 1 << 20


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("corpus", metavar="CORPUS", help="folder of an index")
    add("out", type=Path, metavar="OUT", help="folder to write tokenizer.json into")
    add("--vocab-size", type=positive, default=30522, help="at most this many ids (default: 30522, as BERT)")
    kinds = ", ".join(trainable_kinds())
    add("--kind", default="wordpiece", help=f"{kinds}, or one that --import adds (default: wordpiece)")
    add(
        "--cased",
        action="store_true",
        help="keep case and accents (default: as the kind does; wordpiece lower-cases, as bert-base-uncased)",
    )
    add(
        "--max-bytes",
        type=byte_count,
        default=256 * MIB,
        help="text to learn from, spread over the corpus (default: 256M)",
    )


def run(options: argparse.Namespace) -> int:
    index = load_index(options.corpus)
    with Progress("reading", min(index.header["text_bytes"], options.max_bytes), "MiB", MIB) as progress:
        texts = _texts(index, options.max_bytes, progress)
        tokenizer = train_tokenizer(texts, options.vocab_size, False if options.cased else None, options.kind)
    options.out.mkdir(parents=True, exist_ok=True)
    write_for_others(options.out, tokenizer)
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
