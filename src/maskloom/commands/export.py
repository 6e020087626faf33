"""Write a run's model for Hugging Face: config.json, model.safetensors, the tokenizer, and a model card (README.md).

The folder loads with `AutoModelForMaskedLM.from_pretrained` and `AutoTokenizer.from_pretrained` of transformers 4 and 5, and
in sentence-transformers. The card says what the run knows: data, steps, configuration, held-out figures, digests. Read it, and
complete it, before you publish (docs/publish.md). OUT appears when it is complete.

examples:
  maskloom export runs/quickstart my_model
  maskloom export runs/quickstart my_model --license apache-2.0 --language en --sentence-transformers
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from maskloom.commands.arguments import add_step
from maskloom.progress import say


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", metavar="RUN", help="run directory, RUN@STEP or RUN@best")
    add("out", type=Path, metavar="OUT", help="folder to write; it must not exist")
    add_step(parser)
    add(
        "--sentence-transformers",
        action="store_true",
        help="also write the files of sentence-transformers: mean pooling",
    )
    add("--name", type=plain_word, help="of the model, for its card: NAME or ORGANISATION/NAME (default: the folder's)")
    add("--license", type=plain_word, help="for the card: a hub's identifier, such as apache-2.0")
    add(
        "--language",
        type=plain_word,
        action="append",
        default=[],
        help="for the card: a code such as en; several are allowed",
    )


def run(options: argparse.Namespace) -> int:
    from maskloom.commands.exporting import export_run  # heavy
    from maskloom.publish.card import Author

    author = Author(options.name or options.out.absolute().name, options.license, options.language)
    loaded = export_run(options.run, options.out, options.step, author, options.sentence_transformers)
    say(
        f"{options.out}: the model of step {loaded.step:,}; load it with "
        f"AutoModelForMaskedLM.from_pretrained('{options.out}')"
    )
    return 0


def plain_word(text: str) -> str:
    """A word for the card's metadata."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?", text):
        raise argparse.ArgumentTypeError(f"'{text}' has characters other than letters, digits, '.', '-' and '_'")
    return text
