"""What ranks tell each other with each step, without a message of its own.

A step begins with one all-reduce of a few counts; a notice is one number more in it. Every rank reads the same sums at the
same step, so that what follows from them is agreed: all ranks stop, or count a checkpoint as written, at once. On a GPU the
sums of a step are read when the next one begins, when they have long been there: nothing waits for them.
"""

from __future__ import annotations

import torch

NAMES = ("stop", "saved", "not_saved")
"""`stop`: asked to end after the step; `saved`, `not_saved`: my part of the checkpoint that is being written is on the disk,
or never will be."""


class Notices:
    """This rank's notices, and the sums of all ranks'.

    Attributes:
        mine: what this rank says with each step from now on.
    """

    def __init__(self) -> None:
        self.mine = dict.fromkeys(NAMES, 0)
        self._sums: torch.Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    def said(self) -> torch.Tensor:
        """int64 [len(NAMES)] on the CPU: to be summed over the ranks."""
        return torch.tensor([self.mine[name] for name in NAMES], dtype=torch.int64)

    def hear(self, sums: torch.Tensor) -> None:
        """Take the sums of a step: int64 [len(NAMES)], on any device.

        From a GPU they are copied as soon as they are there, while it goes on with the step.
        """
        if sums.is_cuda:
            self._sums = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=True)
            self._sums.copy_(sums, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()
        else:
            self._sums, self._copied = sums, None

    def heard(self) -> dict[str, int]:
        """The sums of the last step that was heard; zeros before the first."""
        if self._copied is not None:
            self._copied.synchronize()
        return dict(zip(NAMES, [0] * len(NAMES) if self._sums is None else self._sums.tolist(), strict=True))
