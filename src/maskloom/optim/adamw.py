"""AdamW (Loshchilov & Hutter, 2019): DeepSpeed's FusedAdam on a GPU that can have it, else torch's fused one.

Both have the same state, but for the count of steps: torch keeps it in a tensor for each parameter, FusedAdam as an integer.
"""

from __future__ import annotations

import torch

from maskloom.config import Optimizer
from maskloom.optim.kind import FromDeepSpeed, Group, OptimizerKind, betas


def build(groups: list[Group], settings: Optimizer, deepspeed: FromDeepSpeed) -> torch.optim.Optimizer:
    """AdamW over these groups."""
    if deepspeed.fused_adam is None:
        return torch.optim.AdamW(groups, lr=settings.lr, betas=betas(settings), eps=settings.eps, fused=True)
    return deepspeed.fused_adam(groups, lr=settings.lr, betas=betas(settings), eps=settings.eps, adam_w_mode=True)


def title(optimizer: torch.optim.Optimizer, deepspeed: FromDeepSpeed) -> str:
    """Which of the two it is, and why it is torch's on a GPU."""
    if not isinstance(optimizer, torch.optim.AdamW):
        return "AdamW (DeepSpeed's FusedAdam)"
    why = deepspeed.why_no_fused_adam
    said = f"; DeepSpeed's FusedAdam is not to be had: {why}" if why else ""
    return f"AdamW (torch's fused{said})"


def settle(optimizer: torch.optim.Optimizer) -> None:
    """Count steps as this implementation does: the checkpoint may come from a machine with the other one."""
    settle_counts(optimizer, in_tensors=isinstance(optimizer, torch.optim.AdamW))


def settle_counts(optimizer: torch.optim.Optimizer, in_tensors: bool) -> None:
    """Turn the counts of steps in an optimizer's state into tensors, or into integers."""
    for parameter, state in optimizer.state.items():
        if "step" in state:
            step = float(state["step"])
            state["step"] = torch.tensor(step, device=parameter.device) if in_tensors else int(step)


ADAMW = OptimizerKind(
    name="adamw",
    build=build,
    state_bytes=8,
    title=title,
    takes_fused_adam=True,
    can_offload=True,
    settle=settle,
)
