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

from safetensors import SafetensorError
from transformers.utils import logging

from maskloom.commands.arguments import add_step
from maskloom.commands.loading import LoadedRun, load_run, plain_model, run_and_step
from maskloom.errors import UserError
from maskloom.files import whole_folder, write_atomically
from maskloom.models.architecture import longest_piece_of
from maskloom.progress import say
from maskloom.publish.card import Author, model_card
from maskloom.publish.pooling import write_pooling
from maskloom.tokenizers.writing import write_for_others
from maskloom.train.checkpoint import Which, read_state, saved_at


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
    author = Author(options.name or options.out.absolute().name, options.license, options.language)
    loaded = export_run(options.run, options.out, options.step, author, options.sentence_transformers)
    say(
        f"{options.out}: the model of step {loaded.step:,}; load it with "
        f"AutoModelForMaskedLM.from_pretrained('{options.out}')"
    )
    return 0


def export_run(source: str, out: Path, step: Which, author: Author, has_pooling: bool) -> LoadedRun:
    """Write the model of a run, its tokenizer and its card into a new folder, and return what was written.

    Args:
        source: RUN, RUN@STEP or RUN@best.
        step: if `source` does not say it. None: the newest.
        has_pooling: also write the files of sentence-transformers.
    """
    folder, step = run_and_step(source, step)
    with whole_folder(out) as partial:
        loaded = load_run(folder, step)
        write_model(loaded, partial, out.parent)
        _describe(loaded, folder, partial, author, has_pooling)
    return loaded


def write_model(loaded: LoadedRun, folder: Path, named: Path) -> None:
    """Write a run's model and its tokenizer into a folder. `named` is the folder that a message names."""
    logging.disable_progress_bar()
    try:
        plain_model(loaded).save_pretrained(folder)
    except SafetensorError as error:
        raise UserError(f"the weights cannot be written into {named}: {error}") from None
    config = loaded.model.config
    has_token_types = getattr(config, "type_vocab_size", 1) > 1
    write_for_others(folder, loaded.tokenizer, longest_piece_of(config), has_token_types)


def _describe(loaded: LoadedRun, run: Path, folder: Path, author: Author, has_pooling: bool) -> None:
    """Write the card, and the files of sentence-transformers, beside an exported model."""
    if has_pooling:
        config = loaded.model.config
        write_pooling(folder, config.hidden_size, longest_piece_of(config))
    state = read_state(saved_at(run, loaded.step))
    card = model_card(run, loaded.config, state, loaded.model, loaded.tokenizer, author, folder, has_pooling)
    write_atomically(folder / "README.md", card)


def plain_word(text: str) -> str:
    """A word for the card's metadata."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?", text):
        raise argparse.ArgumentTypeError(f"'{text}' has characters other than letters, digits, '.', '-' and '_'")
    return text
