"""DeepSpeed's checkpoint files: loading them safely, at another world size, and as weights in fp32."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from maskloom.errors import UserError
from maskloom.train.engine.building import place_tensors


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
            raise UserError(
                f"{file} holds what no checkpoint of maskloom does, and was not loaded: {what}"
            ) from None
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, EOFError) as error:  # of another format than torch's, or cut off
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise UserError(f"{file} cannot be read: {reason}") from None

    allowed = [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]
    with torch.serialization.safe_globals(allowed), mock.patch.object(torch, "load", load):
        yield


def load_engine(engine: Any, folder: Path, tag: str) -> None:
    """Load model and optimizer from checkpoint `tag` in `folder`. Raises UserError where DeepSpeed finds nothing there."""
    before = [{key: group[key] for key in group.keys() - {"params"}} for group in engine.optimizer.param_groups]
    announcements = logging.getLogger("DeepSpeed")
    level = announcements.level
    announcements.setLevel(logging.ERROR)  # a resume at another world size warns that there is no tensor parallelism
    try:
        with safe_loading():
            loaded, _ = engine.load_checkpoint(str(folder), tag=tag)
    finally:
        announcements.setLevel(level)
    if loaded is None:
        raise UserError(f"DeepSpeed could not load {folder / tag}")
    # Hyperparameters are the configuration's: its universal loader for stage 3 gives every group the first one's.
    for group, settings in zip(engine.optimizer.param_groups, before, strict=True):
        group |= settings
    # torch's AdamW counts steps in a tensor a parameter (the universal loader gives all of them one tensor, which would then
    # count several times a step), the others in an integer: the checkpoint may come from a machine with another one.
    optimizer = engine.basic_optimizer
    counts_in_tensors = isinstance(getattr(optimizer, "aux_optimizer", optimizer), torch.optim.AdamW)
    for parameter, state in optimizer.state.items():
        if "step" in state:
            step = float(state["step"])
            state["step"] = torch.tensor(step, device=parameter.device) if counts_in_tensors else int(step)
    place_tensors(engine)


def full_precision_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint of any ZeRO stage, in fp32, on the CPU."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with safe_loading(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        parts = sorted(folder.glob("*zero_pp_rank_*optim_states.pt"), key=_rank_of)
        if parts and "zero_stage" not in _optimizer_state(parts[0]):
            weights = _bf16_optimizer_weights(folder / "mp_rank_00_model_states.pt", parts)
        elif parts:
            weights = get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), folder.name)
        else:
            file = folder / "mp_rank_00_model_states.pt"
            weights = torch.load(file, map_location="cpu", weights_only=True)["module"]
    return {name: tensor.float().contiguous() for name, tensor in weights.items()}


def convert_to_universal(folder: Path, out: Path) -> None:
    """Write a ZeRO checkpoint in DeepSpeed's universal format, which any world size can load."""
    from argparse import Namespace

    from deepspeed.checkpoint.ds_to_universal import main

    with safe_loading(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(
            Namespace(
                input_folder=str(folder),
                output_folder=str(out),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,
            )
        )


def _bf16_optimizer_weights(model_file: Path, parts: list[Path]) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint of DeepSpeed's BF16_Optimizer (bf16 at stage 1 with accumulation), which its own function
    does not know: a group's vectors of all ranks, one after the other, are its tensors, one after the other."""
    vectors = [_optimizer_state(part)["single_partition_of_fp32_groups"] for part in parts]
    model = torch.load(model_file, map_location="cpu", mmap=True)
    weights: dict[str, torch.Tensor] = {}
    for shapes, group in zip(model["param_shapes"], zip(*vectors, strict=True), strict=True):
        vector, start = torch.cat(group).detach(), 0
        for name, shape in shapes.items():
            weights[name] = vector[start : start + shape.numel()].view(shape)
            start += shape.numel()
    return weights | {alias: weights[name] for alias, name in model["shared_params"].items()}


def _optimizer_state(file: Path) -> Any:
    return torch.load(file, map_location="cpu", mmap=True)["optimizer_state_dict"]


def _rank_of(file: Path) -> int:
    return int(file.name.split("_pp_rank_")[1].split("_")[0])
