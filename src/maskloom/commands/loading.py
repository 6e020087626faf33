"""A run's model from its checkpoint, for the commands that need one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from maskloom.config import RunConfig
from maskloom.config_file import load_config
from maskloom.errors import UserError
from maskloom.models.build import build_defined
from maskloom.models.masked_lm import MaskedLM
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.loading import load_tokenizer
from maskloom.train.checkpoint import read_state, saved_at, tokenizing_of
from maskloom.train.engine.files import full_precision_weights


@dataclass(frozen=True)
class LoadedRun:
    """`tokenizing` is the version with which the run reads text."""

    config: RunConfig
    tokenizer: Tokenizer
    model: MaskedLM
    weights: dict[str, torch.Tensor]
    step: int
    tokenizing: int


def load_run(run: Path, step: int | None, overrides: Sequence[str] = ()) -> LoadedRun:
    """The model of a run in fp32 and evaluation mode, from the checkpoint at `step`, or else the newest whole one."""
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
