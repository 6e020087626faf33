r"""Step to learning rate: pure.

    rate
    lr  |    /------------\            warm-up: a line from 0, which reaches lr at step `warmup_steps`
        |   /              \           decay: linear, cosine, polynomial or 1-sqrt over all the steps that are left, linear (wsd)
        |  /                \             or 1-sqrt over the last `decay_steps`, or none (constant)
        | /                  \_ share  it would reach lr * final_lr_share one step after the last, so that no step is
        +----------------------->         without effect

If a phase has `rewarm_up`, the stretch of steps before it ends there and a new one begins (You et al., 2019). Its decay may be
another one. The three stages of ModernBERT (Warner et al., 2024) are two constant stretches, then one of 1-sqrt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from maskloom.config import Optimizer, Stretch


def learning_rate(step: int, settings: Optimizer, stretches: Sequence[Stretch]) -> float:
    """The learning rate of optimizer step `step`, which counts from 1.

    linear: Devlin et al. (2019). cosine: Loshchilov & Hutter (2017). wsd (warm-up, stable, decay): Hu et al. (2024), with
    the linear decay of Hägele et al. (2024). polynomial: lr * (steps left / steps of decay) ** power. 1-sqrt: Hägele et al.
    (2024), lr * (1 - sqrt(steps done / steps of decay)).

    Args:
        stretches: `RunConfig.schedules`.
    """
    stretch = next(part for part in reversed(stretches) if step > part.first_step)
    step -= stretch.first_step
    highest, warmup, end = stretch.lr, stretch.warmup_steps, stretch.steps + 1
    if step <= warmup:
        return highest * step / warmup
    shape = stretch.own or settings
    begin = end - 1 - shape.decay_steps if shape.decay_steps else warmup
    if step <= begin or shape.schedule == "constant":
        return highest
    left, whole = end - step, end - begin
    lowest = highest * (settings.final_lr_share if stretch.final_lr_share is None else stretch.final_lr_share)
    match shape.schedule:
        case "cosine":
            return lowest + (highest - lowest) * (1 + math.cos(math.pi * (1 - left / whole))) / 2
        case "polynomial":
            assert shape.power is not None
            return lowest + (highest - lowest) * math.pow(left / whole, shape.power)
        case "1-sqrt":
            return lowest + (highest - lowest) * (1 - math.sqrt(1 - left / whole))
        case _:
            return lowest + (highest - lowest) * left / whole
