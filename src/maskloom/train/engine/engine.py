"""`class Engine`: the one face of DeepSpeed. Training knows this class and nothing behind it.

    with engine.accumulating(len(micro_batches)) as backward:
        for micro_batch in micro_batches:
            loss, hits = engine(micro_batch)
            backward(loss * scale)
    norm, is_taken = engine.step(lr)

Accumulation is driven by hand: DeepSpeed is told before each backward whether it is the last of the step. A step that must
not be taken ends with a backward of NaN on every rank. From ZeRO stage 1 on DeepSpeed looks at reduced gradients before it
does anything with them, and drops those that are not finite. At stage 0 that is done here.
"""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, cast

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator

from maskloom.config import Engine as EngineSection
from maskloom.config import Optimizer
from maskloom.data.batch import MicroBatch
from maskloom.distributed import World, meeting, meeting_place
from maskloom.models.masked_lm import MaskedLM, count_parameters
from maskloom.optim import OPTIMIZERS, parameter_groups
from maskloom.train.engine import patches
from maskloom.train.engine.device import device_of, settle_numerics
from maskloom.train.engine.files import load_engine
from maskloom.train.engine.forward import prepare_forward
from maskloom.train.engine.fused_adam import offered
from maskloom.train.engine.patches import DeepSpeedEngine
from maskloom.train.engine.reshape import own_part, place_tensors
from maskloom.train.engine.writing import EngineFile, collect_files
from maskloom.train.timing import Traffic

Backward = Callable[[torch.Tensor], None]


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


def start_distributed(world: World, timeout_s: float = 1800.0, deterministic: bool = False) -> Traffic:
    """Join the other ranks; returns the meter of what DeepSpeed sends, which stays at 0 if there are no others.

    Raises:
        PassingFault: the port is taken, or not all ranks came within `timeout_s`.
        UserError: there are fewer GPUs than ranks.
    """
    device_of(world)  # or DeepSpeed or NCCL would find out, in their words
    settle_numerics(deterministic)
    warnings.filterwarnings("ignore", "`torch.distributed.* is deprecated|.*_tensor. is deprecated", FutureWarning)
    world.export()
    patches.declare_operators_absent()
    with meeting(world, timeout_s), meeting_place(world):
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False, timeout=timedelta(seconds=timeout_s))
    if get_accelerator().device_name() != "cpu":
        get_accelerator().set_device(world.local_rank)
    on_cuda = get_accelerator().device_name() == "cuda"
    traffic = Traffic(functools.partial(torch.cuda.Event, enable_timing=True) if on_cuda else None)
    if world.size > 1:
        traffic.install(patches.communication())
    return traffic


class Engine:
    """A model and its optimizer, spread over the ranks by DeepSpeed. Every rank calls every method, in the same order."""

    def __init__(
        self,
        model: MaskedLM,
        section: EngineSection,
        optimizer: Optimizer,
        settings: Mapping[str, object],
        world: World,
    ) -> None:
        """Wrap the model and its optimizer.

        Args:
            section: `engine` of the configuration.
            optimizer: `optimizer` of the configuration.
            settings: what `deepspeed_config` gives.
        """
        self._reduces_once = section.reduce == "step"
        self._kind = OPTIMIZERS[optimizer.name]
        self._clipping = optimizer.gradient_clipping
        self.parameters = count_parameters(model)
        """Of the whole model; under ZeRO-3 no rank holds them all."""
        prepare_forward(model, section)
        self._offered = offered(self._kind, world)
        built = self._kind.build(parameter_groups(model, optimizer), optimizer, self._offered)
        wrapped, *_ = deepspeed.initialize(model=model, optimizer=built, config=settings, dist_init_required=False)
        self.deepspeed: DeepSpeedEngine = wrapped
        """DeepSpeed's own engine: for tests and benchmarks. Training does not touch it."""
        patches.undo_first_step(self.deepspeed)
        patches.reduce_nothing_alone(self.deepspeed)
        if self._kind.updates_before_norm:
            patches.look_for_overflow_first(self.deepspeed)
        place_tensors(self.deepspeed, self._kind)

    @property
    def model(self) -> MaskedLM:
        """The model; under ZeRO-3 its parameters are empty outside of their layer's call."""
        return cast(MaskedLM, self.deepspeed.module)

    def train(self) -> None:
        """Switch dropout on."""
        self.deepspeed.train()

    def eval(self) -> None:
        """Switch dropout off."""
        self.deepspeed.eval()

    def __call__(self, micro_batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """`MaskedLM.forward`: the fp32 sum of the losses, and the int64 number of hits."""
        return cast(tuple[torch.Tensor, torch.Tensor], self.deepspeed(micro_batch))

    @contextlib.contextmanager
    def accumulating(self, micro_batches: int) -> Iterator[Backward]:
        """The backward passes of one step; when it is left, gradients are averaged over the ranks.

        With `engine.reduce` "step" stages 2 and 3 reduce at the end, once. DeepSpeed would then add micro-batches up in the
        parameters' `grad`, which in half precision is half. Here they are added up in fp32, and rounded to half once, as at
        stage 1. A single micro-batch is reduced during its backward in any case.

        Yields:
            the backward of the next micro-batch, given its loss. A loss of NaN on every rank spoils the step: see `step`.
        """
        engine = self.deepspeed
        once = self._reduces_once and micro_batches > 1 and engine.zero_optimization_stage() >= 2
        is_half = engine.fp16_enabled() or engine.bfloat16_enabled()
        sums: dict[torch.nn.Parameter, torch.Tensor] = {}
        losses = 0

        def backward(loss: torch.Tensor) -> None:
            nonlocal losses
            losses += 1
            is_last = losses == micro_batches
            engine.set_gradient_accumulation_boundary(is_last)
            engine.backward(loss, scale_wrt_gas=False)
            if once and is_half:
                add_up(engine.module, sums, is_last)

        with engine.coalesce_grad_reduction() if once else contextlib.nullcontext():
            yield backward
        engine.set_gradient_accumulation_boundary(True)

    def step(self, lr: float, is_spoilt: bool = False, clipping: float | None = None) -> StepOutcome:
        """Take the optimizer step, if the gradients are finite.

        Args:
            lr: learning rate of the groups whose `rate` is 1.
            is_spoilt: the last loss was NaN on every rank: the step must not be taken, and fp16's loss scale stays.
            clipping: largest global gradient norm, 0 for any; None for what it was when the engine was made.

        Raises:
            LossScaleCollapsed: fp16 gradients overflow at the smallest loss scale: so would those of every step to come.
        """
        engine = self.deepspeed
        for group in engine.optimizer.param_groups:
            group["lr"] = lr * group["rate"]
        patches.set_clipping(engine, self._clipping if clipping is None else clipping)
        norm: torch.Tensor | float = math.nan
        if engine.zero_optimization_stage() == 0:
            norm = gradient_norm(engine.module)
            if is_spoilt or not torch.isfinite(norm):
                engine.zero_grad()
                return StepOutcome(norm, False)
        try:
            with patches.loss_scale_kept(engine) if is_spoilt else contextlib.nullcontext():
                engine.step()
        except Exception as error:
            if "loss scale already at minimum" not in str(error):
                raise
            raise LossScaleCollapsed from None
        kept = engine.get_global_grad_norm()  # None at stage 0 in fp32, which clips without keeping the norm
        is_taken = bool(engine.was_step_applied())
        assert not (is_taken and is_spoilt), "DeepSpeed took a step with gradients that are not finite"
        return StepOutcome(norm if kept is None else kept, is_taken)

    @property
    def adapts_loss_scale(self) -> bool:
        """Whether gradients that overflow now and then are normal: fp16 looks for the highest scale that way."""
        return patches.adapts_loss_scale(self.deepspeed)

    @property
    def loss_scale(self) -> float | None:
        """The loss scale of fp16; None in other precisions."""
        return float(self.deepspeed.optimizer.loss_scale) if self.deepspeed.fp16_enabled() else None

    @property
    def skipped_steps(self) -> int:
        """Steps that fp16 skipped while it looked for a loss scale."""
        return int(self.deepspeed.skipped_steps)

    def parts(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name of each parameter, and the elements of it that this rank holds: all, or under ZeRO-3 its share as a vector."""
        for name, parameter in self.model.named_parameters():
            yield name, own_part(parameter)

    def whole_parameters(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that this rank holds whole, by name: all, or under ZeRO-3 none."""
        return {name: each for name, each in self.model.named_parameters() if not patches.is_cut(each)}

    def optimizer_title(self) -> str:
        """What the optimizer is, in words: which of several implementations was taken, and why."""
        return self._kind.titled(self.deepspeed.basic_optimizer, self._offered)

    def files(self, folder: Path, may_copy: Callable[[int], bool]) -> list[EngineFile]:
        """The files that this rank would write for a checkpoint in `folder`.

        Args:
            may_copy: whether there is room in memory for a copy of so many bytes.
        """
        return collect_files(self.deepspeed, folder, may_copy)

    def load(self, folder: Path, same_spread: bool, same_precision: bool) -> None:
        """Load model and optimizer from a checkpoint of any ZeRO stage and number of ranks.

        Args:
            same_spread: it was written at this ZeRO stage by as many ranks.
            same_precision: it was written in this precision.

        Raises:
            UserError: a file is damaged, or the checkpoint is of another model.
        """
        load_engine(self.deepspeed, self._kind, folder, same_spread, same_precision)

    def close(self) -> None:
        """Give the memory back. The engine must not be used any more."""
        patches.release(self.deepspeed)
        del self.deepspeed
        torch._dynamo.reset()  # the limit of compilations counts those of the next engine too


def add_up(module: torch.nn.Module, sums: dict[torch.nn.Parameter, torch.Tensor], is_last: bool) -> None:
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


def gradient_norm(module: torch.nn.Module) -> torch.Tensor:
    """The norm of all gradients. Not torch's `get_total_norm`: on a CPU it adds squares up in fp32 one after the other, and
    is off by 1e-4 for an embedding."""
    gradients = (parameter.grad for parameter in module.parameters())
    norms = torch.stack([torch.linalg.vector_norm(part.float()) for part in gradients if part is not None])
    norm: torch.Tensor = norms.norm()
    return norm
