"""What ranks tell each other with every step, without a message of its own.

A step begins with one all-reduce of a few counts (`train/step.py`); a notice is one more number in it. Every rank reads the same
sums at the same step. So what follows from them is agreed: all ranks stop together, and all count a checkpoint as written.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from maskloom.distributed import World, gather_objects

NAMES = ("stop", "saved", "not_saved")
"""`stop`: asked to end after the step; `saved`, `not_saved`: my part of the checkpoint that is being written is on the disk,
or never will be."""


class Heard:
    """How many ranks gave each notice with one step.

    From a GPU the sums are copied as soon as they are there, while it goes on with the step. `read` waits for that copy alone.
    """

    def __init__(self, sums: torch.Tensor) -> None:
        """`sums`: int64 [len(NAMES)], over all ranks, on any device."""
        self._sums = sums
        self._copied: torch.cuda.Event | None = None
        if sums.is_cuda:
            self._sums = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=True)
            self._sums.copy_(sums, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def read(self) -> dict[str, int]:
        """Name of the notice -> ranks."""
        if self._copied is not None:
            self._copied.synchronize()
        return dict(zip(NAMES, self._sums.tolist(), strict=True))


class Notices:
    """This rank's notices, and the sums of all ranks'.

    Attributes:
        mine: what this rank says with each step from now on, 0 or 1 by name.
        heard: what all ranks said with the last step; zeros before the first.
    """

    def __init__(self) -> None:
        self.mine = dict.fromkeys(NAMES, 0)
        self.heard = Heard(torch.zeros(len(NAMES), dtype=torch.int64))

    def said(self) -> torch.Tensor:
        """int64 [len(NAMES)] on the CPU: to be summed over the ranks."""
        return torch.tensor([self.mine[name] for name in NAMES], dtype=torch.int64)

    def hear(self, sums: torch.Tensor) -> Heard:
        """Take the sums of a step: int64 [len(NAMES)], on any device."""
        self.heard = Heard(sums)
        return self.heard


def agreed_reason(mine: str | None, world: World) -> str:
    """Why ranks were asked to stop, the same on all of them; empty if none was. Every rank calls it.

    Args:
        mine: why this rank was asked, or None.
    """
    return in_words(gather_objects(mine, world))


def in_words(reasons: Sequence[str | None]) -> str:
    """Reasons to stop with the ranks that have them, in rank order; empty if there is none."""
    by_reason = {reason: [rank for rank, said in enumerate(reasons) if said == reason] for reason in reasons if reason}
    return "; ".join(
        f"{reason} on {'all ranks' if len(ranks) == len(reasons) > 1 else 'rank ' + ', '.join(map(str, ranks))}"
        for reason, ranks in by_reason.items()
    )
