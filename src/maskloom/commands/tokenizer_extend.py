"""Add the frequent words of a corpus that a tokenizer splits, and write OUT/tokenizer.json.

The old tokens keep their ids. A run with `model.init` set to the old model and `tokenizer` set to OUT starts each new row of the
embeddings with the mean of the rows that stood for the word before.

example:
  maskloom tokenizer extend bert-base-uncased data/my_corpus data/my_tokenizer --words 2000
"""

from __future__ import annotations

import argparse
from pathlib import Path

from maskloom.commands.arguments import byte_count, positive
from maskloom.commands.tokenizer import MIB, texts_of
from maskloom.data.index.loading import load_index
from maskloom.errors import UserError
from maskloom.progress import Progress, say
from maskloom.tokenizers.extend import extended, extension_of, find_words
from maskloom.tokenizers.loading import load_tokenizer
from maskloom.tokenizers.writing import write_for_others

SHOWN = 12


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "tokenizer",
        metavar="TOKENIZER",
        help="tokenizer.json, a folder with one, such as a model's, or a name on the Hub",
    )
    add("corpus", metavar="CORPUS", help="folder of an index")
    add("out", type=Path, metavar="OUT", help="folder to write tokenizer.json into")
    add("--words", type=positive, default=1000, metavar="N", help="at most so many words (default: 1000)")
    add("--min-count", type=positive, default=20, metavar="N", help="leave out words that are rarer (default: 20)")
    add("--max-bytes", type=byte_count, default=64 * MIB, help="text to count, spread over the corpus (default: 64M)")


def run(options: argparse.Namespace) -> int:
    index, tokenizer = load_index(options.corpus), load_tokenizer(options.tokenizer)
    extension_of(tokenizer)
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"{options.out} is a file: name a folder")
    with Progress("reading", min(index.header["text_bytes"], options.max_bytes), "MiB", MIB) as progress:
        words = find_words(tokenizer, texts_of(index, options.max_bytes, progress), options.words, options.min_count)
    if not words:
        raise UserError(
            f"{tokenizer.source} splits no word that {options.corpus} has {options.min_count} times: use it as it is, or lower "
            "--min-count"
        )
    longer = extended(tokenizer, words)
    options.out.mkdir(parents=True, exist_ok=True)
    write_for_others(options.out, longer)
    pieces = sum(len(word.pieces) for word in words) / len(words)
    shown = ", ".join(longer.shown(longer.vocabulary[word.token]) for word in words[:SHOWN])
    say(
        f"{len(words):,} words, each of {pieces:.1f} tokens before on average: {shown}{', ...' if words[SHOWN:] else ''}"
    )
    say(f"they save {sum(word.saved for word in words):,} tokens of the text that was read")
    say(f"{options.out / 'tokenizer.json'}: {longer.vocab_size:,} ids, the first {tokenizer.vocab_size:,} as they were")
    return 0
