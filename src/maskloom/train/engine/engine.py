"""`class Engine`: the one face of DeepSpeed. Training knows this class and nothing behind it.

with engine.accumulating(len(micro_batches)) as backward:
    for micro_batch in micro_batches:
        loss, hits = engine(micro_batch)
        backward(loss * scale)
norm, is_taken = engine.step(lr)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import torch

from maskloom.config import RunConfig
from maskloom.data.batch import MicroBatch
from maskloom.distributed import World
from maskloom.models.masked_lm import MaskedLM
from maskloom.train.engine.building import build_engine, optimizer_title, own_part, release_engine
from maskloom.train.engine.files import load_engine
from maskloom.train.engine.stepping import (
    Backward,
    StepOutcome,
    adapts_loss_scale,
    apply_gradients,
    loss_scale,
    reduction,
)
from maskloom.train.engine.writing import EngineFile, collect_files


class Engine:
    """A model and its optimizer, spread over the ranks by DeepSpeed. Every rank calls every method, in the same order."""

    def __init__(self, config: RunConfig, model: MaskedLM, settings: dict[str, Any], world: World) -> None:
        """Wrap the model and its optimizer.

        Args:
            settings: what `deepspeed_config` gives.
        """
        self._world, self._reduce = world, config.engine.reduce
        self.deepspeed: Any = build_engine(config, model, settings, world)
        """DeepSpeed's own engine: for tests and benchmarks. Training does not touch it."""

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

    def accumulating(self, micro_batches: int) -> AbstractContextManager[Backward]:
        """The backward passes of one step; when it is left, gradients are averaged over the ranks.

        Yields:
            the backward of the next micro-batch, given its loss. A loss of NaN on every rank spoils the step: see `step`.
        """
        return reduction(self.deepspeed, self._reduce, micro_batches)

    def step(self, lr: float, is_spoilt: bool = False) -> StepOutcome:
        """Take the optimizer step, if the gradients are finite.

        Args:
            lr: learning rate of the groups whose `rate` is 1.
            is_spoilt: the last loss was NaN on every rank: the step must not be taken, and fp16's loss scale stays.

        Raises:
            LossScaleCollapsed: fp16 gradients overflow at the smallest loss scale.
        """
        return apply_gradients(self.deepspeed, lr, is_spoilt)

    @property
    def adapts_loss_scale(self) -> bool:
        """Whether gradients that overflow now and then are normal: fp16 looks for the highest scale that way."""
        return adapts_loss_scale(self.deepspeed)

    @property
    def loss_scale(self) -> float | None:
        """The loss scale of fp16; None in other precisions."""
        return loss_scale(self.deepspeed)

    @property
    def skipped_steps(self) -> int:
        """Steps that fp16 skipped while it looked for a loss scale."""
        return int(self.deepspeed.skipped_steps)

    def parts(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name of each parameter, and the elements of it that this rank holds: all, or under ZeRO-3 its share as a vector."""
        for name, parameter in self.model.named_parameters():
            yield name, own_part(parameter)

    def optimizer_title(self) -> str:
        """What the optimizer is, in words: which of several implementations was taken, and why."""
        return optimizer_title(self.deepspeed, self._world)

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
        load_engine(self.deepspeed, folder, same_spread, same_precision)

    def close(self) -> None:
        """Give the memory back. The engine must not be used any more."""
        release_engine(self.deepspeed)
        del self.deepspeed
