"""What a run needs of memory and disk, from its configuration and the number of its parameters."""

from __future__ import annotations

import math

from maskloom.config import Checkpoint, Engine, Optimizer
from maskloom.optim import OPTIMIZERS


def bytes_of_numbers(engine: Engine) -> int:
    """Of one weight as it is computed with; `auto` counts as fp32, the larger."""
    return 2 if engine.precision in ("bf16", "fp16") else 4


def checkpoint_bytes(engine: Engine, optimizer: Optimizer, parameters: int) -> int:
    """Of one checkpoint, all ranks' files together: weights, ZeRO's fp32 copy of them, and the optimizer's moments."""
    width, stage = bytes_of_numbers(engine), engine.zero_stage
    weights = 0 if stage == 3 else width
    copy = 4 if stage or width == 2 else 0
    return parameters * (weights + copy + OPTIMIZERS[optimizer.name].state_bytes)


def checkpoints_at_most(settings: Checkpoint, steps: int) -> int:
    """Checkpoints of a run of so many steps that stand side by side at the fullest moment: the new one is whole before the
    oldest goes."""
    every = settings.every_steps or steps
    saves = -(-steps // every)
    kept_for_good = steps // math.lcm(every, settings.keep_every_steps) if settings.keep_every_steps else 0
    return min(saves, settings.keep_last + 1 + kept_for_good)


def rank_bytes(engine: Engine, optimizer: Optimizer, parameters: int, world_size: int) -> int:
    """What a rank holds at least: weights, gradients, and its share of the optimizer's state. No activations."""
    width = bytes_of_numbers(engine)
    states = OPTIMIZERS[optimizer.name].state_bytes + (4 if width == 2 else 0)
    whole, shared = {0: (2 * width + states, 0), 1: (2 * width, states), 2: (width, width + states)}.get(
        engine.zero_stage, (0, 2 * width + states)
    )
    return int(parameters * (whole + shared / world_size))
