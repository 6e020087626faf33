"""A model for the commands that need one: a run's from its checkpoint, or a folder with a Hugging Face checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from maskloom.config import RunConfig
from maskloom.config_file import load_config
from maskloom.errors import UserError
from maskloom.models.build import build_defined
from maskloom.models.masked_lm import MaskedLM
from maskloom.models.warm_start import load_checkpoint, open_checkpoint
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.loading import load_tokenizer
from maskloom.train.checkpoint import Which, read_state, saved_at, tokenizing_of
from maskloom.train.engine.files import full_precision_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LoadedRun:
    """`tokenizing` is the version with which the run reads text."""

    config: RunConfig
    tokenizer: Tokenizer
    model: MaskedLM
    weights: dict[str, torch.Tensor]
    step: int
    tokenizing: int


def load_run(run: Path, step: Which, overrides: Sequence[str] = ()) -> LoadedRun:
    """The model of a run in fp32 and evaluation mode, from a checkpoint: `saved_at`."""
    folder = saved_at(run, step)
    config = load_config(run / "config.yaml", overrides)
    tokenizer = load_tokenizer(run / "model")
    state = read_state(folder)
    model = build_defined(run / "model", changes=config.model_at(state.step))
    weights = full_precision_weights(folder)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{folder} does not fit {run / 'model' / 'config.json'}: {error}") from None
    return LoadedRun(config, tokenizer, model.eval(), weights, state.step, tokenizing_of(state.fingerprint))


def plain_model(loaded: LoadedRun) -> PreTrainedModel:
    """Hugging Face's own model with the run's weights."""
    architecture = loaded.model.architecture
    model = architecture.hf_class(architecture.written(loaded.model.config))
    model.load_state_dict(loaded.weights)
    return model.eval()


def load_plain(source: Path, step: Which = None) -> tuple[PreTrainedModel, Tokenizer]:
    """Hugging Face's own model, in fp32 and evaluation mode, and its tokenizer.

    Args:
        source: a run directory, whose newest whole checkpoint is taken, or a folder with a Hugging Face checkpoint of a
            model for masked tokens and its tokenizer.
        step: of a run, another checkpoint.
    """
    if (source / "config.yaml").exists():
        loaded = load_run(source, step)
        return plain_model(loaded), loaded.tokenizer
    if not (source / "config.json").exists():
        raise UserError(
            f"{source} is neither a run directory nor a Hugging Face checkpoint: no config.yaml or config.json"
        )
    if step is not None:
        raise UserError(f"{source} is one checkpoint of Hugging Face's: only runs have several. Leave the step out")
    model, missing, _ = load_checkpoint(open_checkpoint(str(source), str(source)))
    if missing:
        raise UserError(
            f"{source} is not a trained {type(model).__name__}: it lacks {len(missing)} weights, such as {min(missing)}"
        )
    tokenizer = load_tokenizer(source)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"{source}: the tokenizer has {tokenizer.vocab_size} ids, the model {model.config.vocab_size}: they do not belong "
            "together"
        )
    return model.eval(), tokenizer
