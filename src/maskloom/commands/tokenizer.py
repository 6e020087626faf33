"""Train a tokenizer on the training documents of a corpus, and write OUT/tokenizer.json.

Beside it stands tokenizer_config.json, with which AutoTokenizer of Hugging Face takes it as it is.
`maskloom tokenizer extend` adds words to a tokenizer that exists.

examples:
  maskloom tokenizer data/my_corpus data/my_tokenizer --vocab-size 30522
  maskloom tokenizer data/my_corpus data/my_tokenizer --kind byte-bpe --vocab-size 50368 --spare 64
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from maskloom.commands.arguments import byte_count, natural, positive
from maskloom.data.index.corpus import Index
from maskloom.data.index.loading import load_index
from maskloom.data.order import block_at
from maskloom.progress import Progress, say
from maskloom.tokenizers import TOKENIZERS
from maskloom.tokenizers.base import OTHER
from maskloom.tokenizers.training import train_tokenizer, trainable_kinds
from maskloom.tokenizers.writing import write_for_others

MIB = 1 << 20


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("corpus", metavar="CORPUS", help="folder of an index")
    add("out", type=Path, metavar="OUT", help="folder to write tokenizer.json into")
    kinds = ", ".join(trainable_kinds())
    add("--kind", default="wordpiece", help=f"{kinds}, or one that --import adds (default: wordpiece)")
    add(
        "--vocab-size",
        type=positive,
        default=30522,
        help="at most this many ids, before they are padded (default: 30522, as BERT)",
    )
    add(
        "--cased",
        action="store_true",
        help="keep case and accents (default: as the kind does; only wordpiece lower-cases, as bert-base-uncased)",
    )
    add(
        "--spare",
        type=natural,
        default=0,
        metavar="N",
        help="of these ids, keep N for tokens that are added later: [unused0], [unused1] and so on (default: 0)",
    )
    add(
        "--multiple",
        type=positive,
        metavar="N",
        help=f"pad the number of ids to a multiple of N with more [unused*] ({_usual_multiples()})",
    )
    add(
        "--max-bytes",
        type=byte_count,
        help=f"text to learn from, spread over the corpus ({_usual_texts()})",
    )


def run(options: argparse.Namespace) -> int:
    index = load_index(options.corpus)
    most_bytes = options.max_bytes or TOKENIZERS.get(options.kind, OTHER).train_bytes
    with Progress("reading", min(index.header["text_bytes"], most_bytes), "MiB", MIB) as progress:
        texts = _announced(texts_of(index, most_bytes, progress), progress)
        lowercase = False if options.cased else None
        tokenizer = train_tokenizer(texts, options.vocab_size, lowercase, options.kind, options.spare, options.multiple)
    options.out.mkdir(parents=True, exist_ok=True)
    write_for_others(options.out, tokenizer)
    say(f"{options.out / 'tokenizer.json'}: {tokenizer.vocab_size:,} ids")
    return 0


def _usual_multiples() -> str:
    multiples = {name: TOKENIZERS[name].vocab_multiple for name in trainable_kinds()}
    return "default: " + ", ".join(f"{name} {multiple}" for name, multiple in multiples.items())


def _usual_texts() -> str:
    sizes = {name: TOKENIZERS[name].train_bytes // MIB for name in trainable_kinds()}
    return "default: " + ", ".join(f"{name} {size}M" for name, size in sizes.items())


def _announced(texts: Iterator[str], progress: Progress) -> Iterator[str]:
    yield from texts
    say(f"{progress.done / MIB:,.1f} MiB are read: now the vocabulary is learned, which shows no progress")


def texts_of(index: Index, most_bytes: int, progress: Progress) -> Iterator[str]:
    """Training documents of a corpus, spread over it, until they are so many bytes."""
    blocks = index.train_blocks
    for number in range(len(blocks)):
        if progress.done >= most_bytes:
            break
        _, place = block_at(0, index.digest, number, len(blocks))
        for text in index.documents(int(blocks[place]), "train"):
            progress.advance(len(text.encode()))
            yield text
