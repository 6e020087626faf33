"""maskloom.train with three steps in a row that go wrong on the second rank, each in its own way.

python -m tests.cluster.spoiled CONFIG [key=value...]
"""

from __future__ import annotations

import sys
from typing import Any

import torch

FIRST, LAST = 11, 13
"""Steps, counted from 1: a loss that is NaN, infinite gradients, a spike."""


class InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor) -> torch.Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * torch.inf


SPOILS = [lambda loss: loss * torch.nan, InfiniteGradient.apply, lambda loss: loss * 1000]


def spoil() -> None:
    """Patch this process. Once the run has gone back, the same steps have other rows, and go well."""
    from maskloom.models.masked_lm import MaskedLM
    from maskloom.train import loop

    old_forward, old_step = MaskedLM.forward, loop.train_step
    kind: int | None = None

    def train_step(batch: Any, trainer: Any, engine: Any) -> Any:
        nonlocal kind
        is_struck = trainer.world.rank == 1 and FIRST <= batch.number + 1 <= LAST and not trainer.passed_over
        kind = batch.number + 1 - FIRST if is_struck else None
        return old_step(batch, trainer, engine)

    def forward(self: Any, *arguments: Any) -> Any:
        loss, hits = old_forward(self, *arguments)
        return (loss if kind is None or not self.training else SPOILS[kind](loss)), hits

    MaskedLM.forward, loop.train_step = forward, train_step  # type: ignore[method-assign]


if __name__ == "__main__":
    from maskloom.program import end
    from maskloom.train.__main__ import main

    spoil()
    end(main(sys.argv[1:]))
