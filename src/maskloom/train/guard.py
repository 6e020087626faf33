"""Which steps are taken: pure decisions on the losses of global batches.

A step is not taken where its loss or its gradients are not finite, or where its loss is a spike: more than `spike_sigma`
standard deviations above the mean of the last `window_steps` losses that were taken (Groeneveld et al., 2024, do so in
OLMo). It then leaves weights, moments and counts of the optimizer as they were. Every rank decides alike, from the same sum
over ranks, and a resumed run from the same few numbers of `data.json`.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from typing import Any

from maskloom.config import Guard
from maskloom.scalars import is_count

NOT_FINITE = "its gradients are not finite"


@dataclass(frozen=True)
class GuardState:
    """What the decision on the next step needs of the steps before.

    Attributes:
        phase: of the losses.
        losses: of the newest steps of this phase that were taken, oldest first, at most `window_steps`.
        in_a_row: steps not taken since the last one that was.
        bad_steps: steps not taken so far.
    """

    phase: int = 0
    losses: tuple[float, ...] = ()
    in_a_row: int = 0
    bad_steps: int = 0

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "losses": list(self.losses)}

    @staticmethod
    def from_json(values: dict[str, Any]) -> GuardState:
        """Raises TypeError or ValueError for another shape."""
        state = GuardState(**{**values, "losses": tuple(values.get("losses", ()))})
        counts = (state.phase, state.in_a_row, state.bad_steps)
        if not all(map(is_count, counts)) or not all(
            type(loss) in (int, float) and math.isfinite(loss) for loss in state.losses
        ):
            raise ValueError(f"{values!r} is no state of the guard")
        return state


def highest_loss(state: GuardState, settings: Guard, phase: int) -> float:
    """The highest loss with which a step of `phase` is taken; the largest finite number until the window is full.

    Losses of other phases say nothing: another sequence length or mask rate has other losses.
    """
    losses = state.losses[-settings.window_steps :] if state.phase == phase else ()
    if settings.spike_sigma is None or len(losses) < settings.window_steps:
        return sys.float_info.max
    mean = math.fsum(losses) / len(losses)
    deviation = math.sqrt(math.fsum((loss - mean) ** 2 for loss in losses) / len(losses))
    return mean + settings.spike_sigma * deviation


def why_refused(loss: float, highest: float) -> str | None:
    """Why a step with this loss is not taken, or None."""
    if loss <= highest:
        return None
    if not math.isfinite(loss):
        return f"its loss is {loss}"
    return f"its loss {loss:.4f} is a spike, above {highest:.4f}"


def after_step(state: GuardState, settings: Guard, phase: int, loss: float, is_taken: bool) -> GuardState:
    """The state after a step."""
    if not is_taken:
        return replace(state, in_a_row=state.in_a_row + 1, bad_steps=state.bad_steps + 1)
    losses = state.losses if state.phase == phase else ()
    return GuardState(phase, (*losses, loss)[-settings.window_steps :], 0, state.bad_steps)


def must_roll_back(state: GuardState, settings: Guard) -> bool:
    return state.in_a_row >= settings.skips_before_rollback
