"""A model from a run's settings, from a checkpoint, or from what a run's folder says of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from maskloom.config import Model
from maskloom.errors import UserError
from maskloom.models.architecture import ARCHITECTURES, architecture_of
from maskloom.models.description import read_description
from maskloom.models.masked_lm import MaskedLM, count_parameters, new_model
from maskloom.models.outline import parameters_of
from maskloom.models.warm_start import settle_architecture, warm_start
from maskloom.tokenizers.base import Tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def build_model(settings: Model, tokenizer: Tokenizer, seed: int) -> tuple[MaskedLM, str]:
    """A model from scratch, or warm-started from `settings.init`.

    Returns:
        the model (fp32, on the CPU), and a line that says where its weights come from.

    Raises:
        UserError: the checkpoint cannot be read, is of another architecture, or its vocabulary is not the tokenizer's.
    """
    torch.manual_seed(seed)
    if settings.init is not None:
        return warm_start(settle_architecture(settings), tokenizer)
    model = new_model(configuration_of(settings, tokenizer))
    return model, f"model: {count_parameters(model):,} parameters, initialised from seed {seed}"


def configuration_of(settings: Model, tokenizer: Tokenizer) -> PretrainedConfig:
    """Hugging Face's configuration of a model from scratch."""
    return ARCHITECTURES[settings.architecture].config(settings, tokenizer)


def check_size(config: PretrainedConfig) -> None:
    """Raises UserError if the weights of a configuration's model are more than this machine's memory.

    Each rank builds a new model whole, in fp32, and would find out after minutes.
    """
    parameters = parameters_of(config)
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 4 * parameters > memory_bytes:
        layers, width = map(architecture_of(config).own_name, ("num_hidden_layers", "hidden_size"))
        raise UserError(
            f"the model has {parameters:,} parameters, {4 * parameters / 2**30:,.0f} GiB in fp32, and this machine has "
            f"{memory_bytes / 2**30:,.0f} GiB of memory: lower model.{layers} or model.{width}"
        )


def save_definition(model: MaskedLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write what a checkpoint's weights need beside them: the model's config.json and tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    model.architecture.written(model.config).save_pretrained(folder)
    tokenizer.save(folder / "tokenizer.json")


def build_defined(
    folder: Path, settings: Model | None = None, changes: Mapping[str, Any] = MappingProxyType({})
) -> MaskedLM:
    """The model that `save_definition` described. Its weights are to be loaded.

    Args:
        settings: their dropouts replace the model's.
        changes: fields of the model -> the values that phases gave them later.

    Raises:
        UserError: the folder has no config.json that can be read.
    """
    architecture = architecture_of(read_definition(folder))
    dropout = {name: getattr(settings, name) for name in architecture.dropouts} if settings else {}
    try:
        model = new_model(architecture.config_class.from_pretrained(folder, **dropout))
    except Exception as error:  # the library raises many kinds for a damaged file
        raise UserError(f"{folder / 'config.json'} cannot be read: {error}") from None
    architecture.set_fields(model.config, changes)
    return model


def read_definition(folder: Path) -> PretrainedConfig:
    """The Hugging Face configuration of the model that `save_definition` described, as our forward computes it."""
    try:
        return read_description(folder, str(folder))
    except UserError as error:
        raise UserError(
            f"{error}. The run was trained with the computed values: to resume it, set them in {folder / 'config.json'}"
        ) from None
