"""What frozen encoders know of labels: logistic regression over their vectors of texts.

MODEL is a run, RUN@STEP or RUN@best, a folder with a Hugging Face encoder and its tokenizer, or a name on the Hub. DATA is a
.csv, .tsv, .jsonl or .parquet file, or a folder that `datasets` saved. Several models are probed on the same examples.

Without --test, a fifth of the examples is tested. A hash of the text decides which; with each seed others.

example:
  maskloom probe runs/quickstart reviews.csv --random --baseline
"""

from __future__ import annotations

import argparse

from maskloom.commands.arguments import add_step, natural, positive

SEQ_LEN = 128


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL")
    add("data", metavar="DATA")
    add("--test", metavar="DATA", help="examples to test, of the same columns")
    add("--text", metavar="COLUMN", help="column of the texts (default: guessed from its name)")
    add("--pair", metavar="COLUMN", help="column of the second text of a pair")
    add("--label", metavar="COLUMN", help="column of the classes")
    add_step(parser)
    add("--random", action="store_true", help="probe each model with random weights, too")
    add("--baseline", action="store_true", help="probe the words of the texts, too (TF-IDF)")
    add("--seeds", type=positive, default=1, metavar="N", help="repeat with so many seeds (default: 1)")
    add("--seed", type=natural, default=0, help="the first of them (default: 0)")
    add("--seq-len", type=positive, default=SEQ_LEN, help=f"tokens of a text that are read (default: {SEQ_LEN})")
    add("--json", action="store_true", help="print one JSON object, with the figures of each seed")


def run(options: argparse.Namespace) -> int:
    from maskloom.commands.probing import probe  # heavy

    return probe(options)
