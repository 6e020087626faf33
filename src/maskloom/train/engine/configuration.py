"""Configuration and world to DeepSpeed's configuration: what is derived, what is passed through, what does not go together."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from deepspeed.accelerator import get_accelerator

from maskloom.config import Engine, Optimizer
from maskloom.errors import UserError
from maskloom.optim import OPTIMIZERS
from maskloom.optim.kind import Spread
from maskloom.train.engine.device import Precision, resolve_precision
from maskloom.train.engine.patches import known_keys

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
"""What maskloom decides, even if it does not write it into DeepSpeed's configuration."""
BUCKET_ELEMENTS = 2**24
"""Gradients that are reduced at once, unless `deepspeed.zero_optimization.reduce_bucket_size` says otherwise. DeepSpeed's own
5e8 is more than BERT-large has: the only bucket would be full when the backward is over, and nothing would overlap."""


def deepspeed_config(
    engine: Engine,
    optimizer: Optimizer,
    given: Mapping[str, object],
    micro_batch_rows: int,
    accumulates: bool,
    ranks: int = 1,
) -> dict[str, object]:
    """The DeepSpeed configuration: what is derived, and what the run passes through.

    Args:
        given: the `deepspeed:` block of the run's configuration.
        micro_batch_rows: rows of the first phase's micro-batches.
        accumulates: whether any phase runs more than one micro-batch a step.
        ranks: size of the world; one alone has nothing to overlap.

    Raises:
        UserError: the `deepspeed:` block sets what is derived (every clash is named), or settings that do not go together.
    """
    precision, kind = resolve_precision(engine.precision), OPTIMIZERS[optimizer.name]
    _check_engine(engine, precision, accumulates)
    if refusal := kind.refusal(Spread(engine.zero_stage, precision, accumulates)):
        raise UserError(refusal)
    derived: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch_rows,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimizer.gradient_clipping,
        "zero_optimization": {
            **_zero_config(engine, given.get("zero_optimization"), precision, accumulates, ranks),
            **kind.zero_settings(engine.zero_stage),
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    # Its meter of throughput, on by default, waits for the device before each forward.
    derived["timers"] = {} if "timers" in given else {"throughput": {"enabled": False}}
    if precision != "fp32":
        derived[precision] = {"enabled": True}
        if precision == "bf16":
            derived[precision]["check_grad_overflow"] = True  # steps that are not taken rely on it
        if accumulates:
            derived["data_types"] = {"grad_accum_dtype": "fp32"}
    if engine.reduce_precision != "auto":
        derived["communication_data_type"] = engine.reduce_precision
    reserved = RESERVED | ({"fp16", "bf16"} - {precision})
    clashes = [*_clashes(derived, given), *sorted(reserved & given.keys() - derived.keys())]
    if clashes:
        raise UserError(
            f"the deepspeed: block sets what maskloom derives: {', '.join(clashes)}. Remove it there, and use phases, "
            "optimizer and engine instead"
        )
    _refuse_unknown(given, known_keys() | derived.keys())
    merged = _merged(derived, given)
    _check_offload(merged["zero_optimization"], optimizer)
    return merged


def _check_engine(engine: Engine, precision: Precision, accumulates: bool) -> None:
    """Raises UserError if settings of the engine do not go together."""
    if precision == "fp16" and engine.zero_stage == 0:
        raise UserError(
            "engine.zero_stage 0 with fp16 does not scale the loss: DeepSpeed 0.19 divides gradients by a loss scale that it "
            "did not multiply them with. Set engine.zero_stage=1"
        )
    if precision == "bf16" and engine.zero_stage == 0 and accumulates:
        raise UserError(
            f"engine.zero_stage 0 with {precision} would accumulate gradients in {precision} and lose precision: set "
            "engine.zero_stage=1, or raise phases.N.micro_batch_rows until a step is one micro-batch"
        )
    if engine.reduce_precision == "fp16" != precision:
        raise UserError(
            f"engine.reduce_precision fp16 with precision {precision}: without fp16's loss scale small gradients become 0 on "
            "their way. Set engine.reduce_precision=bf16 or fp32"
        )


def _check_offload(zero: dict[str, Any], optimizer: Optimizer) -> None:
    """Raises UserError if DeepSpeed is to keep state where the optimizer cannot have it, or where no checkpoint finds it."""
    offload = zero.get("offload_optimizer") or {}
    if not OPTIMIZERS[optimizer.name].can_offload and offload.get("device", "none") != "none":
        can = " or ".join(kind.name for kind in OPTIMIZERS.values() if kind.can_offload)
        raise UserError(
            f"deepspeed.zero_optimization.offload_optimizer does not go with optimizer.name {optimizer.name}: remove "
            f"it, or set optimizer.name={can}"
        )
    for key in ("offload_optimizer", "offload_param"):
        if (zero.get(key) or {}).get("device") == "nvme":
            raise UserError(
                f"deepspeed.zero_optimization.{key}.device nvme cannot be had: DeepSpeed keeps that state in files of its own, "
                "which no checkpoint would hold. Set it to cpu"
            )


def _zero_config(
    engine: Engine, given: object, precision: Precision, accumulates: bool, ranks: int
) -> dict[str, object]:
    stage, overlap = engine.zero_stage, engine.overlap
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
    sized = isinstance(given, dict) and "reduce_bucket_size" in given
    return {"stage": stage, "overlap_comm": overlap, **({} if sized else {"reduce_bucket_size": BUCKET_ELEMENTS})}


def _refuse_unknown(given: Mapping[str, object], known: frozenset[str]) -> None:
    lines = []
    for key in sorted(given.keys() - known):
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        lines.append(f"'{key}'" + (f" (did you mean '{near[0]}'?)" if near else ""))
    if lines:
        raise UserError(f"the deepspeed: block has what DeepSpeed does not know: {', '.join(lines)}. Remove it there")


def _clashes(derived: dict[str, Any], given: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted(derived.keys() & given.keys()):
        if isinstance(derived[key], dict) and isinstance(given[key], dict):
            found += _clashes(derived[key], given[key], f"{prefix}{key}.")
        else:
            found.append(f"{prefix}{key}")
    return found


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _merged(one[key], other[key]) if key in one and key in other else other.get(key, one.get(key))
        for key in [*one, *(key for key in other if key not in one)]
    }
