"""DeepSpeed's checkpoint files: loading them safely, into an engine or as weights in fp32."""

from __future__ import annotations

import contextlib
import functools
import io
import pickle
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from maskloom.errors import UserError
from maskloom.models.freezing import read_frozen
from maskloom.optim.kind import OptimizerKind
from maskloom.train.engine.patches import DeepSpeedEngine
from maskloom.train.engine.reshape import (
    layout_of_engine,
    layout_of_files,
    load_reshaped,
    model_file,
    optimizer_files,
    optimizer_state,
    place_tensors,
)

UNREADABLE = (RuntimeError, EOFError, ValueError, LookupError, struct.error)
"""What torch raises of a file of another format than its own, or one that was cut off."""


@contextlib.contextmanager
def safe_loading() -> Iterator[None]:
    """Within it, whatever DeepSpeed unpickles is limited to tensors, plain values and the classes of its own checkpoints.

    DeepSpeed passes `weights_only=False` to every `torch.load`; a checkpoint from elsewhere could run any code.

    Raises:
        UserError: naming the file, for anything else in it.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    original = torch.load

    @functools.wraps(original)
    def load(file: Any, *args: Any, **options: Any) -> Any:
        try:
            return original(file, *args, **{**options, "weights_only": True})
        except pickle.UnpicklingError as error:
            asked = re.search(r"GLOBAL (\S+)", str(error))
            what = f"the class or function {asked[1]}" if asked else "a pickle of something else than tensors"
            raise UserError(f"{file} holds what no checkpoint of maskloom does, and was not loaded: {what}") from None
        except torch.OutOfMemoryError:
            raise
        except UNREADABLE as error:
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise UserError(f"{file} cannot be read: {reason}") from None

    allowed = [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]
    with torch.serialization.safe_globals(allowed), mock.patch.object(torch, "load", load):
        yield


def load_engine(
    engine: DeepSpeedEngine, kind: OptimizerKind, folder: Path, same_spread: bool, same_precision: bool
) -> None:
    """Load model and optimizer from a checkpoint; all ranks call it.

    Args:
        same_spread: it was written at this ZeRO stage by as many ranks.
        same_precision: it was written in this precision.

    Raises:
        UserError: DeepSpeed finds nothing there, or it is of another model.
    """
    before = [{key: group[key] for key in group.keys() - {"params"}} for group in engine.optimizer.param_groups]
    with safe_loading():
        if same_spread and same_precision and layout_of_files(folder) == layout_of_engine(engine):
            loaded, _ = engine.load_checkpoint(str(folder.parent), tag=folder.name)
            if loaded is None:
                raise UserError(f"DeepSpeed could not load {folder}")
        else:
            load_reshaped(engine, kind, folder, keeps_loss_scale=same_precision)
    # Hyperparameters are the configuration's.
    for group, settings in zip(engine.optimizer.param_groups, before, strict=True):
        group |= settings
    kind.settle(engine.basic_optimizer)
    place_tensors(engine, kind)


def full_precision_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint of any ZeRO stage, in fp32, on the CPU. Frozen ones are the run's (`models.freezing`)."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with safe_loading(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        parts = optimizer_files(folder)
        model = torch.load(model_file(folder), map_location="cpu", mmap=bool(parts))
        if parts and layout_of_files(folder) == "bf16":
            weights = _bf16_optimizer_weights(model["param_shapes"], parts)
        elif parts:
            weights = get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), folder.name)
        else:
            weights = model["module"]
    aliases = (model["shared_params"] or {}) if parts else _aliases(weights)
    weights |= read_frozen(folder.parents[1] / "model")
    weights |= {alias: weights[name] for alias, name in aliases.items() if name in weights}
    return {name: tensor.float().contiguous() for name, tensor in weights.items()}


def _aliases(weights: dict[str, torch.Tensor]) -> dict[str, str]:
    """Name -> an earlier name of the same weight."""
    first: dict[tuple[int, torch.Size], str] = {}
    names = {name: first.setdefault((tensor.data_ptr(), tensor.shape), name) for name, tensor in weights.items()}
    return {name: earlier for name, earlier in names.items() if name != earlier}


def _bf16_optimizer_weights(param_shapes: Any, parts: list[Path]) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint of DeepSpeed's BF16_Optimizer: bf16 at stage 1 with accumulation.

    DeepSpeed's own function does not know it. A group's vectors of all ranks, one after the other, are its tensors, one after the
    other.
    """
    vectors = [optimizer_state(part)["single_partition_of_fp32_groups"] for part in parts]
    weights: dict[str, torch.Tensor] = {}
    for shapes, group in zip(param_shapes, zip(*vectors, strict=True), strict=True):
        vector, start = torch.cat(group).detach(), 0
        for name, shape in shapes.items():
            weights[name] = vector[start : start + shape.numel()].view(shape)
            start += shape.numel()
    return weights
