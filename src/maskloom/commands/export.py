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
from maskloom.files import whole_folder
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
    add("--name", type=_plain, help="of the model, for its card: NAME or ORGANISATION/NAME (default: the folder's)")
    add("--license", type=_plain, help="for the card: a hub's identifier, such as apache-2.0")
    add(
        "--language",
        type=_plain,
        action="append",
        default=[],
        help="for the card: a code such as en; several are allowed",
    )


def run(options: argparse.Namespace) -> int:
    from maskloom.commands.exporting import describe, write_model  # heavy
    from maskloom.commands.loading import load_run, run_and_step
    from maskloom.publish.card import Author

    folder, step = run_and_step(options.run, options.step)
    with whole_folder(options.out) as partial:
        loaded = load_run(folder, step)
        write_model(loaded, partial, options.out.parent)
        author = Author(options.name or options.out.absolute().name, options.license, options.language)
        describe(loaded, folder, partial, author, options.sentence_transformers)
    say(
        f"{options.out}: the model of step {loaded.step:,}; load it with "
        f"AutoModelForMaskedLM.from_pretrained('{options.out}')"
    )
    return 0


def _plain(text: str) -> str:
    """A word for the card's metadata."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?", text):
        raise argparse.ArgumentTypeError(f"'{text}' has characters other than letters, digits, '.', '-' and '_'")
    return text
