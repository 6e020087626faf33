"""Step to learning rate: pure."""

from __future__ import annotations


def learning_rate(step: int, highest: float, warmup_steps: int, total_steps: int) -> float:
    """Linear warm-up from 0 to `highest`, then linear decay that would be 0 one step after the last, so that no step is
    without effect (Devlin et al., 2019).

    Args:
        step: counts from 1, the number of the optimizer step that the rate is for.
    """
    if step <= warmup_steps:
        return highest * step / warmup_steps
    return highest * (total_steps + 1 - step) / (total_steps + 1 - warmup_steps)
