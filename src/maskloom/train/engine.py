"""Configuration and world to a DeepSpeed engine. The only module that imports deepspeed.

What is done by hand here, each because DeepSpeed 0.19 does otherwise by default:

- only the micro-batch is configured, never the global batch: accumulation is set before each micro-batch, so that the
  number of micro-batches can change between phases and the loss can be weighted over the global batch;
- half precision accumulates gradients in fp32 (in half, 256 micro-batches cost 4 % of the gradient);
- the shared-memory collective is declared absent: nothing here uses it, and building it takes minutes at every first start;
- checkpoints are unpickled with an allow-list of four classes, and nothing else.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast
from unittest import mock

import torch

from maskloom.config import Optimizer, RunConfig
from maskloom.distributed import World
from maskloom.errors import UserError
from maskloom.model.bert import MaskedLM
from maskloom.train.lamb import Lamb, Piece, Placing
from maskloom.train.optim import adamw, betas, lamb, parameter_groups

logging.disable(logging.WARNING)  # importing it announces, as a warning, that there is no GPU
import deepspeed  # noqa: E402
from deepspeed.accelerator import get_accelerator  # noqa: E402

get_accelerator()
logging.disable(logging.NOTSET)

RESERVED = {
    "train_batch_size",
    "optimizer",
    "scheduler",
    "tensorboard",
    "amp",
    "torch_autocast",
    "data_types",
    "checkpoint",
}
"""What maskloom decides, also where it does not write it into DeepSpeed's configuration."""
Precision = Literal["fp32", "bf16", "fp16"]


def device_of(world: World) -> torch.device:
    """The device of this rank."""
    accelerator = get_accelerator()
    if accelerator.device_name() == "cpu":
        return torch.device("cpu")
    if world.local_rank >= accelerator.device_count():
        raise UserError(
            f"rank {world.rank} is number {world.local_rank} on its machine, which has {accelerator.device_count()} "
            f"{accelerator.device_name()} device(s): start at most that many processes there"
        )
    return torch.device(accelerator.device_name(), world.local_rank)


def resolve_precision(wanted: Literal["auto", "fp32", "bf16", "fp16"]) -> Precision:
    """`auto` to bf16 on a GPU and fp32 on a CPU. Raises UserError for what the device cannot do."""
    accelerator = get_accelerator()
    if wanted == "auto":
        return "fp32" if accelerator.device_name() == "cpu" else "bf16"
    if wanted == "fp16" and not accelerator.is_fp16_supported():
        raise UserError(
            f"engine.precision fp16 is not supported on this {accelerator.device_name()}: set engine.precision=bf16 or fp32"
        )
    if wanted == "bf16" and not accelerator.is_bf16_supported():
        raise UserError(f"engine.precision bf16 is not supported on this {accelerator.device_name()}: use fp16 or fp32")
    return wanted


def deepspeed_config(
    config: RunConfig, micro_batch_rows: int, accumulates: bool, universal: bool = False
) -> dict[str, Any]:
    """The DeepSpeed configuration: what is derived, and what the run passes through.

    Args:
        micro_batch_rows: rows of the first phase's micro-batches.
        accumulates: whether any phase runs more than one micro-batch a step.
        universal: load a checkpoint in the universal format.

    Raises:
        UserError: the `deepspeed:` block sets what is derived (every clash is named), or settings that do not go together.
    """
    precision = resolve_precision(config.engine.precision)
    stage = config.engine.zero_stage
    if precision == "bf16" and stage == 0 and accumulates:
        raise UserError(
            "engine.zero_stage 0 with bf16 would accumulate gradients in bf16 and lose precision: set engine.zero_stage=1, "
            "or raise phases.N.micro_batch_rows until a step is one micro-batch"
        )
    if precision == "fp16" and stage == 0:
        raise UserError(
            "engine.zero_stage 0 does not go with fp16: DeepSpeed divides the gradients by the loss scale there, but does not "
            "scale the loss. Set engine.zero_stage=1"
        )
    if config.optimizer.name == "muon" and stage == 2 and precision != "fp32" and accumulates:
        raise UserError(
            f"engine.zero_stage 2 does not go with optimizer.name muon, {precision} and several micro-batches a step: DeepSpeed "
            "loses the gradients of what AdamW moves. Set engine.zero_stage=1 or 3, or raise phases.N.micro_batch_rows until "
            "a step is one micro-batch"
        )
    if config.optimizer.name == "muon" and universal:
        raise UserError(
            "the checkpoint was written by another number of ranks, and DeepSpeed cannot spread Muon's momentum anew: start "
            "as many ranks as wrote it"
        )
    derived: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch_rows,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optimizer.gradient_clipping,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    if config.optimizer.name == "muon" and stage == 3:
        derived["zero_optimization"]["reduce_scatter"] = False  # its Muon needs whole gradients
    if precision != "fp32":
        derived[precision] = {"enabled": True}
        if accumulates:
            derived["data_types"] = {"grad_accum_dtype": "fp32"}
    if universal:
        derived["checkpoint"] = {"load_universal": True}
    reserved = RESERVED | ({"fp16", "bf16"} - {precision})
    clashes = [*_clashes(derived, config.deepspeed), *sorted(reserved & config.deepspeed.keys() - derived.keys())]
    if clashes:
        raise UserError(
            f"the deepspeed: block sets what maskloom derives: {', '.join(clashes)}. Remove it there, and use phases, "
            "optimizer and engine instead"
        )
    merged = _merged(derived, config.deepspeed)
    offload = merged["zero_optimization"].get("offload_optimizer") or {}
    if config.optimizer.name != "adamw" and offload.get("device", "none") != "none":
        raise UserError(
            f"deepspeed.zero_optimization.offload_optimizer does not go with optimizer.name {config.optimizer.name}: remove "
            "it, or set optimizer.name=adamw"
        )
    return merged


def start_distributed(world: World) -> None:
    """Join the other ranks."""
    warnings.filterwarnings("ignore", "`torch.distributed.* is deprecated|.*_tensor. is deprecated", FutureWarning)
    world.export()
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    if get_accelerator().device_name() != "cpu":
        get_accelerator().set_device(world.local_rank)


def build_engine(config: RunConfig, model: MaskedLM, settings: dict[str, Any]) -> Any:
    """Wrap the model and its optimizer. `settings` is what `deepspeed_config` gives."""
    if config.engine.kernels == "compile":
        model.compile(dynamic=False)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=build_optimizer(model, config.optimizer), config=settings, dist_init_required=False
    )
    if engine.zero_optimization_stage() == 0 and engine.optimizer is not engine.basic_optimizer:
        # DeepSpeed's wrappers for half precision begin with a step without gradients, which decays the weights and counts.
        engine.optimizer.refresh_fp32_params()
        engine.basic_optimizer.state.clear()
    _place_tensors(engine)
    return engine


def build_optimizer(model: MaskedLM, settings: Optimizer) -> Any:
    """The optimizer over a model's parameters; `optimizer_title` says which it became."""
    if settings.name == "lamb":
        return lamb(model, settings)
    fused = None if why_no_fused_adam() else deepspeed.ops.adam.FusedAdam
    if settings.name == "adamw":
        if fused is None:
            return adamw(model, settings)
        groups = parameter_groups(model, settings)
        return fused(groups, lr=settings.lr, betas=betas(settings), eps=settings.eps, adam_w_mode=True)
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    groups = parameter_groups(model, settings)
    for group in groups:
        for parameter in group["params"]:
            parameter.use_muon = group["use_muon"]
    if fused is not None:
        return MuonWithAuxAdam(groups, fused, {"adam_w_mode": True})
    return MuonWithAuxAdam(groups, torch.optim.AdamW, {"fused": True})


def why_no_fused_adam() -> str | None:
    """Why DeepSpeed's FusedAdam cannot be had here, or None where it can.

    It is a CUDA extension, which a build of DeepSpeed may hold ready and which is otherwise compiled at the first start.
    """
    if get_accelerator().device_name() != "cuda":
        return "it is for CUDA"
    from deepspeed.git_version_info import installed_ops
    from deepspeed.ops.op_builder.builder import CUDAMismatchException, MissingCUDAException, assert_no_cuda_mismatch
    from torch.utils.cpp_extension import verify_ninja_availability

    if installed_ops.get("fused_adam", False):
        return None
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            assert_no_cuda_mismatch("fused_adam")
        verify_ninja_availability()
    except (CUDAMismatchException, MissingCUDAException, RuntimeError) as error:
        return str(error).strip().removeprefix(">- DeepSpeed Op Builder: ")
    return None


def optimizer_title(engine: Any) -> str:
    """What the optimizer is, in words: also which of several implementations was taken, and why."""
    optimizer = engine.basic_optimizer
    if isinstance(optimizer, Lamb):
        return "LAMB"
    inner = getattr(optimizer, "aux_optimizer", optimizer)
    title = "AdamW (DeepSpeed's FusedAdam)"
    if isinstance(inner, torch.optim.AdamW):
        why = f"; DeepSpeed's FusedAdam is not to be had: {why_no_fused_adam()}"
        title = f"AdamW (torch's fused{why if torch.cuda.is_available() else ''})"
    return title if inner is optimizer else f"Muon (DeepSpeed's) for the encoder layers' matrices, {title} for the rest"


def accumulate(engine: Any, loss: torch.Tensor, is_last: bool) -> None:
    """Backward of one micro-batch; gradients are reduced over ranks where the ZeRO stage asks for it."""
    engine.set_gradient_accumulation_boundary(is_last)
    engine.backward(loss, scale_wrt_gas=False)


def apply_gradients(engine: Any, lr: float) -> float:
    """The optimizer step at learning rate `lr`; returns the global gradient norm before clipping."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr * group["rate"]
    norm: Any = None
    if engine.zero_optimization_stage() == 0:
        # Stage 0 in fp32 clips without keeping the norm. Not get_total_norm: on a CPU it adds squares up in fp32 one after
        # the other, and is off by 1e-4 for an embedding.
        gradients = (parameter.grad for parameter in engine.module.parameters())
        norm = torch.stack([torch.linalg.vector_norm(part.float()) for part in gradients if part is not None]).norm()
    engine.step()
    kept = engine.get_global_grad_norm()
    return float(kept if kept is not None else norm)


def loss_scale(engine: Any) -> float | None:
    """The dynamic loss scale of fp16, None in other precisions."""
    return float(engine.optimizer.cur_scale) if engine.fp16_enabled() else None


@contextlib.contextmanager
def safe_loading() -> Iterator[None]:
    """Within it, whatever DeepSpeed unpickles is limited to tensors, plain values and the classes of its own checkpoints.

    DeepSpeed passes `weights_only=False` to every `torch.load`; a checkpoint from elsewhere could run any code.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    original = torch.load

    @functools.wraps(original)
    def load(*args: Any, **options: Any) -> Any:
        return original(*args, **{**options, "weights_only": True})

    allowed = [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]
    try:
        with torch.serialization.safe_globals(allowed), mock.patch.object(torch, "load", load):
            yield
    except pickle.UnpicklingError as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"the checkpoint holds what no checkpoint of maskloom does, and was not loaded: {reason}"
        ) from None


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
    _place_tensors(engine)


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


def own_part(parameter: Any) -> torch.Tensor:
    """The elements of a parameter that this rank holds: all, or under ZeRO 3 its share without what pads it, as a vector.

    What pads a share is memory that nobody wrote: it may hold anything.
    """
    if not hasattr(parameter, "ds_tensor"):
        return cast(torch.Tensor, parameter)
    share: torch.Tensor = parameter.ds_tensor.flatten()
    return share[: max(0, min(len(share), parameter.ds_numel - torch.distributed.get_rank() * len(share)))]


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


def _place_tensors(engine: Any) -> None:
    """Tell LAMB which pieces of the model's tensors lie where in the vectors that ZeRO made of them."""
    optimizer, wrapper = engine.basic_optimizer, engine.optimizer
    stage = engine.zero_optimization_stage()
    if not isinstance(optimizer, Lamb) or stage == 0:
        return
    placings: dict[torch.Tensor, Placing] = {}
    if stage == 3:
        for vector, tensors in zip(wrapper.fp32_partitioned_groups_flat, wrapper.fp16_groups, strict=True):
            pieces, start = [], 0
            for number, tensor in enumerate(tensors):
                if held := len(own_part(tensor)):
                    pieces.append(Piece(number, start, held))
                start += tensor.partition_numel()
            placings[vector] = Placing(len(tensors), tuple(pieces))
    else:
        groups = wrapper.bf16_groups if hasattr(wrapper, "bf16_groups") else wrapper.bit16_groups
        for group, tensors in zip(optimizer.param_groups, groups, strict=True):
            found = [
                (number, tensor._hp_mapping.get_hp_fragment_address())
                for number, tensor in enumerate(tensors)
                if tensor._hp_mapping is not None
            ]
            pieces = [Piece(number, address.start, address.numel) for number, address in found]
            placings[group["params"][0]] = Placing(len(tensors), tuple(pieces))
    optimizer.place(placings)


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


def _clashes(derived: dict[str, Any], given: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted(derived.keys() & given.keys()):
        if isinstance(derived[key], dict) and isinstance(given[key], dict):
            found += _clashes(derived[key], given[key], f"{prefix}{key}.")
        else:
            found.append(f"{prefix}{key}")
    return found


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _merged(one[key], other[key]) if key in one and key in other else other.get(key, one.get(key))
        for key in [*one, *(key for key in other if key not in one)]
    }
