"""Configuration and world to DeepSpeed's configuration: what is derived, what is passed through, what does not go together."""

from __future__ import annotations

import difflib
import os
from typing import Any, Literal

import torch
from deepspeed.accelerator import get_accelerator

from maskloom.config import RunConfig
from maskloom.distributed import World
from maskloom.errors import UserError

RESERVED = {
    "train_batch_size",
    "optimizer",
    "scheduler",
    "tensorboard",
    "amp",
    "torch_autocast",
    "data_types",
    "checkpoint",
    "communication_data_type",
    "managed_gradient_accumulation",
    "bfloat16",
}
"""What maskloom decides, also where it does not write it into DeepSpeed's configuration."""
PASSED_ON = {
    "activation_checkpointing",
    "aio",
    "autotuning",
    "comet",
    "comms_logger",
    "compile",
    "csv_monitor",
    "data_efficiency",
    "dataloader_drop_last",
    "datastates_ckpt",
    "disable_allgather",
    "disable_python_gc",
    "dump_state",
    "expert_parallel",
    "flops_profiler",
    "gradient_allreduce_op",
    "gradient_predivide_factor",
    "hybrid_engine",
    "log_level",
    "memory_breakdown",
    "pipeline",
    "prescale_gradients",
    "seq_parallel_communication_data_type",
    "tensor_parallel",
    "use_data_before_expert_parallelism",
    "vocabulary_size",
    "wall_clock_breakdown",
    "wandb",
    "weight_quantization",
    "zero_force_ds_cpu_optimizer",
}
"""What else DeepSpeed 0.19.8 reads; any other key it would pass over without a word."""
Precision = Literal["fp32", "bf16", "fp16"]
BUCKET_ELEMENTS = 2**24
"""Gradients that are reduced at once, unless `deepspeed.zero_optimization.reduce_bucket_size` says otherwise. DeepSpeed's own
5e8 is more than BERT-large has: the only bucket would be full when the backward is over, and nothing would overlap."""


def device_of(world: World) -> torch.device:
    """The device of this rank. Raises UserError, on every rank of a machine, if the machine has fewer GPUs than ranks."""
    accelerator = get_accelerator()
    kind = accelerator.device_name()
    if kind == "cpu":
        return torch.device("cpu")
    count, ranks = accelerator.device_count(), max(world.local_size, world.local_rank + 1)
    if ranks > count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        shown = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"
        raise UserError(
            f"{ranks} ranks on a machine on which rank {world.rank} sees {count} {kind} device(s){shown}: each rank needs one. "
            f"Start at most {count} there (--processes {count}, slots={count} in a hostfile, --ntasks-per-node={count}), or show "
            "every rank all devices, if each is shown its own (Slurm: --gpus-per-node in place of --gpus-per-task)"
        )
    return torch.device(kind, world.local_rank)


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


def deepspeed_config(config: RunConfig, micro_batch_rows: int, accumulates: bool, ranks: int = 1) -> dict[str, Any]:
    """The DeepSpeed configuration: what is derived, and what the run passes through.

    Args:
        micro_batch_rows: rows of the first phase's micro-batches.
        accumulates: whether any phase runs more than one micro-batch a step.
        ranks: size of the world; one alone has nothing to overlap.

    Raises:
        UserError: the `deepspeed:` block sets what is derived (every clash is named), or settings that do not go together.
    """
    precision = resolve_precision(config.engine.precision)
    stage = config.engine.zero_stage
    if precision == "fp16" and stage == 0:
        raise UserError(
            "engine.zero_stage 0 with fp16 does not scale the loss: DeepSpeed 0.19 divides gradients by a loss scale that it "
            "did not multiply them with. Set engine.zero_stage=1"
        )
    if precision == "bf16" and stage == 0 and accumulates:
        raise UserError(
            f"engine.zero_stage 0 with {precision} would accumulate gradients in {precision} and lose precision: set "
            "engine.zero_stage=1, or raise phases.N.micro_batch_rows until a step is one micro-batch"
        )
    if config.optimizer.name == "muon" and stage == 2 and precision != "fp32" and accumulates:
        raise UserError(
            f"engine.zero_stage 2 does not go with optimizer.name muon, {precision} and several micro-batches a step: DeepSpeed "
            "loses the gradients of what AdamW moves. Set engine.zero_stage=1 or 3, or raise phases.N.micro_batch_rows until "
            "a step is one micro-batch"
        )
    derived: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch_rows,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optimizer.gradient_clipping,
        "zero_optimization": _zero_config(config, precision, accumulates, ranks),
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    # Its meter of throughput, on by default, waits for the device before each forward.
    derived["timers"] = {} if "timers" in config.deepspeed else {"throughput": {"enabled": False}}
    if config.optimizer.name == "muon" and stage == 3:
        derived["zero_optimization"]["reduce_scatter"] = False  # its Muon needs whole gradients
    if precision != "fp32":
        derived[precision] = {"enabled": True}
        if precision == "bf16":
            derived[precision]["check_grad_overflow"] = True  # steps that are not taken rely on it
        if accumulates:
            derived["data_types"] = {"grad_accum_dtype": "fp32"}
    if config.engine.reduce_precision != "auto":
        derived["communication_data_type"] = config.engine.reduce_precision
    if config.engine.reduce_precision == "fp16" != precision:
        raise UserError(
            f"engine.reduce_precision fp16 with precision {precision}: without fp16's loss scale small gradients become 0 on "
            "their way. Set engine.reduce_precision=bf16 or fp32"
        )
    reserved = RESERVED | ({"fp16", "bf16"} - {precision})
    clashes = [*_clashes(derived, config.deepspeed), *sorted(reserved & config.deepspeed.keys() - derived.keys())]
    if clashes:
        raise UserError(
            f"the deepspeed: block sets what maskloom derives: {', '.join(clashes)}. Remove it there, and use phases, "
            "optimizer and engine instead"
        )
    _refuse_unknown(config.deepspeed, PASSED_ON | derived.keys())
    merged = _merged(derived, config.deepspeed)
    offload = merged["zero_optimization"].get("offload_optimizer") or {}
    if config.optimizer.name != "adamw" and offload.get("device", "none") != "none":
        raise UserError(
            f"deepspeed.zero_optimization.offload_optimizer does not go with optimizer.name {config.optimizer.name}: remove "
            "it, or set optimizer.name=adamw"
        )
    for key in ("offload_optimizer", "offload_param"):
        if (merged["zero_optimization"].get(key) or {}).get("device") == "nvme":
            raise UserError(
                f"deepspeed.zero_optimization.{key}.device nvme cannot be had: DeepSpeed keeps that state in files of its own, "
                "which no checkpoint would hold. Set it to cpu"
            )
    return merged


def _zero_config(config: RunConfig, precision: Precision, accumulates: bool, ranks: int) -> dict[str, Any]:
    stage, overlap = config.engine.zero_stage, config.engine.overlap
    if stage == 0:
        return {"stage": 0}
    # DeepSpeed's BF16_Optimizer, which it takes for this combination, reduces after the backward.
    after = stage == 1 and precision == "bf16" and accumulates
    if overlap and after:
        raise UserError(
            "engine.overlap cannot be had at zero_stage 1 in bf16 with accumulation: there DeepSpeed sends gradients after "
            "the backward. Set engine.overlap=false, or engine.zero_stage=2"
        )
    if overlap is None:
        overlap = ranks > 1 and not after and get_accelerator().device_name() != "cpu"
    given = config.deepspeed.get("zero_optimization")
    sized = isinstance(given, dict) and "reduce_bucket_size" in given
    return {"stage": stage, "overlap_comm": overlap, **({} if sized else {"reduce_bucket_size": BUCKET_ELEMENTS})}


def _refuse_unknown(given: dict[str, Any], known: set[str]) -> None:
    lines = []
    for key in sorted(given.keys() - known):
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        lines.append(f"'{key}'" + (f" (did you mean '{near[0]}'?)" if near else ""))
    if lines:
        raise UserError(f"the deepspeed: block has what DeepSpeed does not know: {', '.join(lines)}. Remove it there")


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
