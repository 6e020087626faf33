"""Weights that a run leaves as they are (`model.freeze`).

    encoder       all but the head: the transform is trained, and the decoder, or its bias alone if it has the embeddings' matrix
    embeddings    the table of the tokens' embeddings, which often is the decoder's matrix too

A frozen weight gets no gradient and no optimizer state. It does not count in the norm of the gradients. In half precision
DeepSpeed keeps it in half alone, since it has no fp32 copy of what it does not train. So the run writes the frozen weights down
once, in fp32, beside the model's config.json. Whatever reads the run's weights takes them from there, bit for bit. The file
holds a digest of its weights, since no checkpoint's manifest has one of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from maskloom.errors import UserError
from maskloom.files import naming, whole_file
from maskloom.models.masked_lm import MaskedLM, count_parameters, embedding_of

FROZEN = "frozen.safetensors"
"""Name of the file of frozen weights in the folder `model` of a run."""
DIGEST = "sha256"


def freeze(model: MaskedLM, part: str | None) -> None:
    """Freeze a part of a model, before an optimizer takes its parameters.

    Args:
        part: `model.freeze` of the configuration.

    Raises:
        UserError: nothing would be left to train.
    """
    for name, parameter in model.named_parameters():
        is_embedding = parameter is embedding_of(model).weight  # under whichever of its names
        is_head = name.startswith(model.architecture.head_names) and not is_embedding
        parameter.requires_grad = part is None or not (is_embedding or (part == "encoder" and not is_head))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            f"model.freeze {part} leaves nothing to train: all of this {model.architecture.name} model's head is its embeddings. "
            "Leave model.freeze out"
        )


def frozen_note(model: MaskedLM, part: str | None) -> str:
    """A note for the log: how much of the model is trained; empty if all of it is."""
    if part is None:
        return ""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return f"; model.freeze {part}: {trained:,} of {count_parameters(model):,} parameters are trained"


def frozen_weights(model: MaskedLM) -> dict[str, torch.Tensor]:
    """Copies of the frozen weights, by name, each once."""
    return {name: each.detach().clone() for name, each in model.named_parameters() if not each.requires_grad}


def write_frozen(folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Write frozen weights into the folder of a run's model."""
    file = folder / FROZEN
    with naming(file), whole_file(file, file.with_suffix(".partial")) as opened:
        opened.write(save(dict(weights), metadata={DIGEST: _digest(weights)}))


def read_frozen(folder: Path) -> dict[str, torch.Tensor]:
    """The frozen weights of a run, by name; none if it has no such file.

    Args:
        folder: that of the run's model.

    Raises:
        UserError: the file is damaged.
    """
    if not (folder / FROZEN).exists():
        return {}
    try:
        weights = load_file(folder / FROZEN)
        with safe_open(folder / FROZEN, framework="pt") as file:
            is_whole = (file.metadata() or {}).get(DIGEST) == _digest(weights)
        fault = "" if is_whole else "its weights are not those of its digest"
    except (SafetensorError, OSError) as error:
        fault = str(error)
    if fault:
        raise UserError(f"{folder / FROZEN} is damaged: {fault}. Restore it, or begin the run again")
    return weights


def _digest(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of names and values, in the order of the names."""
    sha256 = hashlib.sha256()
    for name in sorted(weights):
        sha256.update(name.encode() + b"\0")
        sha256.update(weights[name].contiguous().flatten().view(torch.uint8).cpu().numpy().data)
    return sha256.hexdigest()


def load_frozen(model: MaskedLM, folder: Path) -> None:
    """Give a model that `freeze` was called for its frozen weights.

    Args:
        folder: that of the run's model.

    Raises:
        UserError: they are not there, or not this model's.
    """
    weights = read_frozen(folder)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            continue
        if name not in weights or weights[name].shape != parameter.shape:
            raise UserError(
                f"{folder / FROZEN} does not hold {name} {list(parameter.shape)}, which this run does not train (model.freeze): "
                "restore the file, or begin the run again"
            )
        parameter.data.copy_(weights[name])
