"""A cloze test of a model: 40 sentences of its field, one obvious word of each masked, five guesses a mask.

MODEL is a run directory, or a folder with a Hugging Face checkpoint and its tokenizer. Sentences that the training text has are
left out. A word that is not one token of the vocabulary counts as a miss. Beside it stands what the five most frequent tokens
of the training text hit.

example:
  python benchmarks/cloze.py runs/quickstart data/quickstart/shards
  python benchmarks/cloze.py my_model data/mine --sentences mine.tsv --show
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from cloze.guessing import Guess, guesses, most_frequent
from cloze.items import SENTENCES, Item, found_in, read_items
from maskloom.commands.loading import load_plain
from maskloom.config import Data
from maskloom.data.plan import open_corpora
from maskloom.errors import UserError
from maskloom.progress import show
from maskloom.tokenizers.base import Tokenizer

GUESSES = 5


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="cloze", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL")
    add("text", metavar="SHARDS", help="the training text: a folder that holds index.json")
    add("--sentences", type=Path, default=SENTENCES, help="one a line: text with [MASK], a tab, the word")
    add("--show", action="store_true", help="print every sentence with its guesses")
    add("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)

    corpora = open_corpora(Data(train=options.text))
    items = read_items(options.sentences)
    documents = (
        text for index in corpora for block in index.train_blocks for text in index.documents(int(block), "train")
    )
    known = found_in(items, documents)
    items = [item for number, item in enumerate(items) if number not in known]
    if not items:
        raise UserError(f"{options.text} has every sentence of {options.sentences}: take other sentences")
    model, tokenizer = load_plain(options.model)
    found = guesses(model, tokenizer, items, GUESSES)
    frequent = most_frequent(corpora, tokenizer, GUESSES)
    baseline = sum(guess.answer in frequent for guess in found)
    hits = sum(guess.is_hit for guess in found)
    if options.json:
        figures = {"sentences": len(items), "hits": hits, "frequent_hits": baseline, "left_out": len(known)}
        show(json.dumps(figures))
        return 0
    for item, guess in zip(items, found, strict=True) if options.show else ():
        show(line_of(item, guess, tokenizer))
    show(
        f"cloze test: the masked word of {hits} in {len(items)} sentences is among the model's first {GUESSES} guesses"
    )
    shown = ", ".join(tokenizer.shown(token) for token in frequent)
    show(f"  always guessing the {GUESSES} most frequent tokens ({shown}): {baseline} in {len(items)}")
    if known:
        show(f"  {len(known)} sentence(s) left out, because the training text has them")
    if several := [item.word for item, guess in zip(items, found, strict=True) if guess.answer is None]:
        show(f"  misses, because they are not one token: {', '.join(several)}")
    return 0


def line_of(item: Item, guess: Guess, tokenizer: Tokenizer) -> str:
    """A sentence, its word and the guesses."""
    guessed = ", ".join(tokenizer.shown(token) for token in guess.tokens)
    return f"{'hit ' if guess.is_hit else 'miss'}  {item.text}  [{item.word}]: {guessed}"
