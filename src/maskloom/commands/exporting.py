"""The files of an exported model: the model itself, its tokenizer, its card, and those of sentence-transformers."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from transformers.utils import logging

from maskloom.commands.loading import LoadedRun, load_run, plain_model, run_and_step
from maskloom.errors import UserError
from maskloom.files import whole_folder, write_atomically
from maskloom.models.architecture import longest_piece_of
from maskloom.publish.card import Author, model_card
from maskloom.publish.pooling import write_pooling
from maskloom.tokenizers.writing import write_for_others
from maskloom.train.checkpoint import Which, read_state, saved_at


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
