"""What a run needs of memory and disk, from its configuration and the number of its parameters."""

from __future__ import annotations

import math

from maskloom.config import RunConfig
from maskloom.optim import OPTIMIZERS


def bytes_of_numbers(config: RunConfig) -> int:
    """Of one weight as it is computed with; `auto` counts as fp32, the larger."""
    return 2 if config.engine.precision in ("bf16", "fp16") else 4


def state_bytes(config: RunConfig) -> int:
    """Of the optimizer's state for one weight."""
    return OPTIMIZERS[config.optimizer.name].state_bytes


def checkpoint_bytes(config: RunConfig, parameters: int) -> float:
    """Of one checkpoint, all ranks' files together: weights, ZeRO's fp32 copy of them, and the optimizer's moments."""
    width, stage = bytes_of_numbers(config), config.engine.zero_stage
    weights = 0 if stage == 3 else width
    copy = 4 if stage or width == 2 else 0
    moments = state_bytes(config)
    return parameters * (weights + copy + moments)


def checkpoints_at_most(config: RunConfig) -> int:
    """Checkpoints that stand side by side at the fullest moment: the new one is whole before the oldest goes."""
    settings, steps = config.checkpoint, config.total_steps
    every = settings.every_steps or steps
    saves = -(-steps // every)
    kept_for_good = steps // math.lcm(every, settings.keep_every_steps) if settings.keep_every_steps else 0
    return min(saves, settings.keep_last + 1 + kept_for_good)


def rank_bytes(config: RunConfig | None, parameters: int | None, world_size: int) -> int:
    """What a rank holds at least: weights, gradients, and its share of the optimizer's state. No activations."""
    if not config or not parameters:
        return 0
    width, stage = bytes_of_numbers(config), config.engine.zero_stage
    states = state_bytes(config) + (4 if width == 2 else 0)
    whole, shared = {0: (2 * width + states, 0), 1: (2 * width, states), 2: (width, width + states)}.get(
        stage, (0, 2 * width + states)
    )
    return int(parameters * (whole + shared / world_size))
