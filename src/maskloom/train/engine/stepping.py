"""Losses to gradients, gradients to weights: an optimizer step, driven by hand.

A step that must not be taken ends with a backward of NaN on every rank. From ZeRO stage 1 on DeepSpeed looks at reduced
gradients before it does anything with them, and drops those that are not finite; at stage 0 that is done here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch

Backward = Callable[[torch.Tensor], None]


@contextlib.contextmanager
def reduction(engine: Any, reduce: Literal["step", "micro_batch"], micro_batches: int) -> Iterator[Backward]:
    """The backward passes of one optimizer step; when it is left, gradients are averaged over the ranks.

    With `reduce` "step" stages 2 and 3 reduce at the end, once. DeepSpeed then adds micro-batches up in the parameters'
    `grad`, which in half precision is half: here they are added up in fp32, and rounded to half once, as at stage 1.
    A single micro-batch is reduced during its backward in any case.

    Yields:
        the backward of the next micro-batch, given its loss.
    """
    once = reduce == "step" and micro_batches > 1 and engine.zero_optimization_stage() >= 2
    is_half = engine.fp16_enabled() or engine.bfloat16_enabled()
    sums: dict[torch.nn.Parameter, torch.Tensor] = {}
    losses = 0

    def backward(loss: torch.Tensor) -> None:
        nonlocal losses
        losses += 1
        accumulate(engine, loss, is_last=losses == micro_batches)
        if once and is_half:
            _move_gradients(engine.module, sums, is_last=losses == micro_batches)

    with engine.coalesce_grad_reduction() if once else contextlib.nullcontext():
        yield backward
    engine.set_gradient_accumulation_boundary(True)


def _move_gradients(module: torch.nn.Module, sums: dict[torch.nn.Parameter, torch.Tensor], is_last: bool) -> None:
    """Add `grad` to fp32 sums and clear it; after the last micro-batch put the sums into it."""
    for parameter in module.parameters():
        if parameter.grad is None:
            continue
        if parameter in sums:
            sums[parameter].add_(parameter.grad)
        else:
            sums[parameter] = parameter.grad.float()
        if is_last:  # in place: under stage 3 a parameter has no elements here, and takes no other gradient
            parameter.grad.copy_(sums.pop(parameter))
        else:
            parameter.grad = None


def accumulate(engine: Any, loss: torch.Tensor, is_last: bool) -> None:
    """Backward of one micro-batch; gradients are reduced over ranks where the ZeRO stage asks for it."""
    engine.set_gradient_accumulation_boundary(is_last)
    engine.backward(loss, scale_wrt_gas=False)


class StepOutcome(NamedTuple):
    """What became of an optimizer step.

    Attributes:
        norm: global gradient norm before clipping; on a GPU still on the device, for whoever needs it to wait for.
        is_taken: if not, weights, moments and counts of the optimizer are what they were.
    """

    norm: torch.Tensor | float
    is_taken: bool


class LossScaleCollapsed(Exception):
    """fp16 gradients overflow although the loss scale is at its minimum."""


def apply_gradients(engine: Any, lr: float, is_spoilt: bool = False) -> StepOutcome:
    """The optimizer step at learning rate `lr`, if the gradients are finite.

    Args:
        is_spoilt: the step must not be taken: its last loss was NaN on every rank. It is none of fp16's overflows.

    Raises:
        LossScaleCollapsed: the step was skipped, and so would every step to come.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = lr * group["rate"]
    norm: Any = None
    if engine.zero_optimization_stage() == 0:
        # Stage 0 in fp32 clips without keeping the norm. Not get_total_norm: on a CPU it adds squares up in fp32 one after
        # the other, and is off by 1e-4 for an embedding.
        gradients = (parameter.grad for parameter in engine.module.parameters())
        norm = torch.stack([torch.linalg.vector_norm(part.float()) for part in gradients if part is not None]).norm()
        if is_spoilt or not torch.isfinite(norm):
            engine.zero_grad()
            return StepOutcome(norm, False)
    try:
        with _loss_scale_kept(engine) if is_spoilt else contextlib.nullcontext():
            engine.step()
    except Exception as error:
        if "loss scale already at minimum" not in str(error):
            raise
        raise LossScaleCollapsed from None
    kept: torch.Tensor | float | None = engine.get_global_grad_norm()
    is_taken = bool(engine.was_step_applied())
    assert not (is_taken and is_spoilt), "DeepSpeed took a step with gradients that are not finite"
    return StepOutcome(kept if kept is not None else norm, is_taken)


@contextlib.contextmanager
def _loss_scale_kept(engine: Any) -> Iterator[None]:
    """Within it, a step that is dropped counts neither for fp16's loss scale nor among the steps that it skipped."""
    skipped_steps, fields = engine.skipped_steps, {}
    if adapts_loss_scale(engine):
        fields = vars(engine.optimizer.loss_scaler)
    before = dict(fields)
    if before:
        fields["raise_error_at_min_scale"] = False
    yield
    fields.update(before)
    engine.skipped_steps = skipped_steps


def adapts_loss_scale(engine: Any) -> bool:
    """Whether gradients that overflow now and then are normal: fp16 looks for the highest scale that way."""
    return bool(getattr(getattr(engine.optimizer, "loss_scaler", None), "dynamic", False))


def loss_scale(engine: Any) -> float | None:
    """The dynamic loss scale of fp16, None in other precisions."""
    return float(engine.optimizer.loss_scale) if engine.fp16_enabled() else None
