"""Write a run's model for Hugging Face: config.json, model.safetensors and the tokenizer.

The folder loads with `AutoModelForMaskedLM.from_pretrained` and `AutoTokenizer.from_pretrained` of transformers 4 and 5, and
in sentence-transformers. OUT appears when it is complete.

example:
  maskloom export runs/quickstart my_model
"""

from __future__ import annotations

import argparse
from pathlib import Path

from safetensors import SafetensorError
from transformers.utils import logging

from maskloom.commands.arguments import add_step
from maskloom.commands.loading import load_run, plain_model
from maskloom.errors import UserError
from maskloom.files import whole_folder
from maskloom.models.architecture import longest_piece_of
from maskloom.progress import say
from maskloom.tokenizers.writing import write_for_others


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="run directory")
    add("out", type=Path, metavar="OUT", help="folder to write; it must not exist")
    add_step(parser)


def run(options: argparse.Namespace) -> int:
    with whole_folder(options.out) as partial:
        loaded = load_run(options.run, options.step)
        logging.disable_progress_bar()
        try:
            plain_model(loaded).save_pretrained(partial)
        except SafetensorError as error:
            raise UserError(f"the weights cannot be written into {options.out.parent}: {error}") from None
        config = loaded.model.config
        has_token_types = getattr(config, "type_vocab_size", 1) > 1
        write_for_others(partial, loaded.tokenizer, longest_piece_of(config), has_token_types)
    say(
        f"{options.out}: the model of step {loaded.step:,}; load it with "
        f"AutoModelForMaskedLM.from_pretrained('{options.out}')"
    )
    return 0
