"""Model and configuration to a DeepSpeed engine."""

from __future__ import annotations

import functools
import warnings
from datetime import timedelta
from typing import Any, cast

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK

from maskloom.config import Optimizer, RunConfig
from maskloom.distributed import World, meeting, meeting_place
from maskloom.models.masked_lm import MaskedLM
from maskloom.optim.groups import adamw, betas, lamb, parameter_groups
from maskloom.optim.lamb import Lamb, Piece, Placing
from maskloom.train.engine.configuration import device_of
from maskloom.train.engine.forward import prepare_forward
from maskloom.train.engine.fused_adam import fused_adam, why_refused
from maskloom.train.engine.numerics import settle_numerics
from maskloom.train.timing import Traffic


def start_distributed(world: World, timeout_s: float = 1800.0, deterministic: bool = False) -> Traffic:
    """Join the other ranks; returns the meter of what DeepSpeed sends, which stays at 0 where there are no others.

    Raises:
        PassingFault: the port is taken, or not all ranks came within `timeout_s`.
        UserError: there are fewer GPUs than ranks.
    """
    device_of(world)  # or DeepSpeed or NCCL would find out, in their words
    settle_numerics(deterministic)
    warnings.filterwarnings("ignore", "`torch.distributed.* is deprecated|.*_tensor. is deprecated", FutureWarning)
    world.export()
    # No operator for its communication, which it would build for minutes. Looking into the table that it makes itself compiles
    # programs to find out what is there, with this process' stderr led to nowhere meanwhile: what we say then would be lost.
    deepspeed.ops.__compatible_ops__ = {}
    with meeting(world, timeout_s), meeting_place(world):
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False, timeout=timedelta(seconds=timeout_s))
    if get_accelerator().device_name() != "cpu":
        get_accelerator().set_device(world.local_rank)
    on_cuda = get_accelerator().device_name() == "cuda"
    traffic = Traffic(functools.partial(torch.cuda.Event, enable_timing=True) if on_cuda else None)
    if world.size > 1:
        traffic.install(deepspeed.comm.comm.cdb)
    return traffic


def build_engine(config: RunConfig, model: MaskedLM, settings: dict[str, Any], world: World) -> Any:
    """Wrap the model and its optimizer; every rank calls it. `settings` is what `deepspeed_config` gives."""
    prepare_forward(model, config.engine)
    optimizer = build_optimizer(model, config.optimizer, world)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    if engine.zero_optimization_stage() == 0 and engine.optimizer is not engine.basic_optimizer:
        # DeepSpeed's wrappers for half precision begin with a step without gradients, which decays the weights and counts.
        engine.optimizer.refresh_fp32_params()
        engine.basic_optimizer.state.clear()
    if engine.zero_optimization_stage() == 0 and engine.world_size == 1:
        # Nothing to reduce, but DeepSpeed would copy all gradients to a buffer and back: a fifth of a step on a CPU.
        engine.enable_backward_allreduce = False
    if engine.zero_optimization_stage() == 3 and config.optimizer.name == "muon":
        # DeepSpeed looks at all gradients before the momentum of any matrix takes its own up only in fp16, and afterwards else.
        engine.optimizer._overflow_check_and_loss_scale_update = functools.partial(_check_overflow, engine.optimizer)
    place_tensors(engine)
    return engine


def _check_overflow(wrapper: Any, update_scale: bool = True) -> bool:
    """In place of ZeRO-3's method of that name, which its step calls with `update_scale` False."""
    assert not update_scale
    wrapper.check_overflow()
    return bool(wrapper.overflow)


def release_engine(engine: Any) -> None:
    """Give back the memory of an engine that is not used any more; nobody may look into it afterwards."""
    module = engine.module
    engine.destroy()
    # ZeRO-3 puts every model that it wraps at the bottom of this stack, and never takes it off.
    FWD_MODULE_STACK[:] = [other for other in FWD_MODULE_STACK if other is not module]
    # Its hooks lie in cycles through autograd, in which Python's collector cannot see.
    for parameter in module.parameters():
        parameter.grad = None
        vars(parameter).clear()
        parameter.data = torch.empty(0, device=parameter.device, dtype=parameter.dtype)
    for part in {engine.basic_optimizer, engine.optimizer, engine}:
        vars(part).clear()
    torch._dynamo.reset()  # the limit of compilations counts those of both engines


def build_optimizer(model: MaskedLM, settings: Optimizer, world: World) -> Any:
    """The optimizer over a model's parameters, the same on every rank; `optimizer_title` says which it became."""
    if settings.name == "lamb":
        return lamb(model, settings)
    fused = fused_adam(world)
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


def optimizer_title(engine: Any, world: World) -> str:
    """What the optimizer is, in words: also which of several implementations was taken, and why."""
    optimizer = engine.basic_optimizer
    if isinstance(optimizer, Lamb):
        return "LAMB"
    inner = getattr(optimizer, "aux_optimizer", optimizer)
    title = "AdamW (DeepSpeed's FusedAdam)"
    if isinstance(inner, torch.optim.AdamW):
        why = f"; DeepSpeed's FusedAdam is not to be had: {why_refused(world)}"
        title = f"AdamW (torch's fused{why if torch.cuda.is_available() else ''})"
    return title if inner is optimizer else f"Muon (DeepSpeed's) for the encoder layers' matrices, {title} for the rest"


def place_tensors(engine: Any) -> None:
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


def own_part(parameter: Any) -> torch.Tensor:
    """The elements of a parameter that this rank holds: all, or under ZeRO 3 its share without what pads it, as a vector.

    What pads a share is memory that nobody wrote: it may hold anything.
    """
    if not hasattr(parameter, "ds_tensor"):
        return cast(torch.Tensor, parameter)
    share: torch.Tensor = parameter.ds_tensor.flatten()
    return share[: max(0, min(len(share), parameter.ds_numel - torch.distributed.get_rank() * len(share)))]
