"""Numbers that are not finite: where they are, and what a user is told to do about them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence

import torch

from maskloom.config import RunConfig
from maskloom.data.batch import MicroBatch
from maskloom.distributed import World, gather_objects, sum_over_ranks
from maskloom.errors import UserError
from maskloom.models.overflow import find_overflow
from maskloom.train.engine.engine import Engine


def count_not_finite(engine: Engine, device: torch.device) -> int:
    """Weights of all ranks that are no numbers; every rank calls it."""
    wrong = torch.zeros((), dtype=torch.int64, device=device)
    for _, part in engine.parts():
        wrong += (~torch.isfinite(part)).sum()
    return int(sum_over_ranks(wrong))


def first_not_finite(
    engine: Engine,
    buckets: Sequence[MicroBatch],
    seed_dropout: Callable[[int], None],
    scale: torch.Tensor | float,
    world: World,
) -> str:
    """Which layer of which ranks is the first whose output or gradient is not finite, on every rank alike; or nothing.

    Args:
        buckets: the micro-batches of this rank's step.
        seed_dropout: called with the number of each, before it is computed again.
        scale: of the loss, without the loss scale of fp16; on the device it is read here, and not in a step.
    """
    found: str | None = None
    for number, bucket in enumerate(buckets):
        seed_dropout(number)
        found = found or find_overflow(engine.model, bucket, float(scale) * (engine.loss_scale or 1.0))
    places = gather_objects(found, world)
    return "; ".join(f"rank {rank}: {place}" for rank, place in enumerate(places) if place)


def diverged(what: str, config: RunConfig) -> UserError:
    """The error that ends a run which goes nowhere."""
    fp16 = ", or engine.precision=bf16" if config.engine.precision == "fp16" else ""
    return UserError(
        f"the run diverged: {what}. Start anew in another run_dir with a lower optimizer.lr (now {config.optimizer.lr}) "
        f"or a longer optimizer.warmup_steps{fp16}"
    )


def collapsed(step: int, where: str, config: RunConfig, last_good: str | None) -> UserError:
    """The error that ends a run in fp16 at `step`, which counts from 1.

    Args:
        where: what `first_not_finite` found.
        last_good: name of the newest checkpoint.
    """
    origin = f"from={config.run_dir}@{int(last_good.removeprefix('step-'))}" if last_good else ""
    origin = f"{shlex.quote(origin)} and " if origin else ""
    return UserError(
        f"fp16 collapsed at step {step}: gradients overflow although the loss scale is at its minimum. Not finite: "
        f"{where or 'the sum of the gradients'}. Begin in another run_dir, with {origin}engine.precision=bf16 or a lower "
        f"optimizer.lr (now {config.optimizer.lr})"
    )
