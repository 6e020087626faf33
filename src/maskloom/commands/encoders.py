"""An encoder for the commands that turn texts into vectors: a head for masked tokens is not needed.

A model of an architecture that maskloom knows is computed by our forward, which packs texts. Any other encoder of Hugging Face's
is computed by its own class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from maskloom.commands.loading import checkpoint_folder, is_computed, is_run, load_run, run_and_step
from maskloom.errors import UserError
from maskloom.models.foreign import check_rows, load_encoder_of, longest_piece_in, tokenizer_beside
from maskloom.models.masked_lm import new_model, packed
from maskloom.models.warm_start import load_checkpoint, open_checkpoint
from maskloom.tokenizers.base import Tokenizer
from maskloom.train.checkpoint import Which


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder in fp32 and evaluation mode.

    Attributes:
        source: as it was named, with the step of a run.
        model: a `MaskedLM`, or an encoder of Hugging Face.
        longest: the most slots of a text.
        fresh: (seed) -> the same model with weights drawn anew.
    """

    source: str
    model: Any
    tokenizer: Tokenizer
    longest: int
    fresh: Callable[[int], Any]


def load_encoder(source: str, step: Which = None) -> LoadedEncoder:
    """The encoder that a user names.

    Args:
        source: as `loading.load_named` takes it.
        step: of a run, if `source` does not say it. Left out: its newest whole checkpoint.

    Raises:
        UserError: it cannot be had, weights of the encoder are lacking, or it does not fit its tokenizer.
    """
    if is_run(source):
        run, step = run_and_step(source, step)
        loaded = load_run(run, step)
        tokenizer = loaded.tokenizer.as_of(loaded.tokenizing)
        return _encoder(f"{run} at step {loaded.step:,}", loaded.model, tokenizer, new_model)
    if step is not None:
        raise UserError(f"--step is for a run, and {source} is not a run: it has no config.yaml")
    folder = checkpoint_folder(source)
    tokenizer = tokenizer_beside(folder, source)
    if is_computed(folder, source):
        model, _, _ = load_checkpoint(open_checkpoint(str(folder), source))
        check_rows(model, tokenizer, source)
        return _encoder(source, packed(model), tokenizer, new_model)
    model = load_encoder_of(folder, source)
    check_rows(model, tokenizer, source)
    return _encoder(source, model, tokenizer, type(model))


def _encoder(source: str, model: Any, tokenizer: Tokenizer, build: Callable[[Any], Any]) -> LoadedEncoder:
    def fresh(seed: int) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build(model.config).eval()

    return LoadedEncoder(source, model.eval(), tokenizer, longest_piece_in(model), fresh)
