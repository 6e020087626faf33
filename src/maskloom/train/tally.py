"""What the steps since the last logged line came to, summed over all ranks.

The sums stay on the device, so that a step waits for none of them; a logged line takes them all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from maskloom.data.rows import Rows, count_slots, count_text_tokens
from maskloom.models.flops import Shape, training_flops
from maskloom.tokenizers.base import Tokenizer
from maskloom.train.metrics import Work


def counts_of(rows: Rows, tokenizer: Tokenizer, windows: Sequence[int | None] = (None,)) -> torch.Tensor:
    """int64 [3 + W], of a rank's rows: predicted tokens, text tokens, real slots, and for each of the W windows of attention
    the pairs of slots that see each other."""
    text_tokens = count_text_tokens(rows, tokenizer)
    slots, pairs = count_slots(rows, tokenizer, windows)
    return torch.tensor([np.count_nonzero(rows.chosen), text_tokens, slots, *pairs], dtype=torch.int64)


class Tally:
    """The sums; they begin at a step that has seen so many text tokens. `windows` are those of attention that are counted."""

    def __init__(self, tokens_seen: int, device: torch.device, windows: int = 1) -> None:
        self._tokens = torch.tensor(tokens_seen, dtype=torch.int64, device=device)
        # Losses and predicted tokens of the steps taken; of all steps what `counts_of` counts, and the slots that were computed.
        self._losses = torch.zeros(2, dtype=torch.float64, device=device)
        self._counts = torch.zeros(3 + windows, dtype=torch.int64, device=device)
        self._computed_slots = 0

    def add(self, counts: torch.Tensor, computed_slots: int, loss_sum: torch.Tensor | None) -> None:
        """Add a step.

        Args:
            counts: of all ranks, as `counts_of` has them.
            computed_slots: of all ranks, padding and filling rows included.
            loss_sum: over the predicted tokens of all ranks; None for a step that was not taken.
        """
        self._tokens += counts[1]
        if loss_sum is not None:
            self._losses += torch.stack([loss_sum, counts[0].double()])
        self._counts += counts
        self._computed_slots += computed_slots

    def tokens_seen(self) -> int:
        """Text tokens of all steps since the run began."""
        return int(self._tokens)

    def take(self, shape: Shape) -> tuple[float | None, Work]:
        """The mean loss of a predicted token in the steps that were taken, None if none was, and what all steps did; the
        next sums begin here."""
        loss_sum, taken = self._losses.tolist()
        predicted, _, slots, *pairs = self._counts.tolist()
        work = Work(slots, self._computed_slots, training_flops(shape, slots, pairs, predicted))
        self._losses.zero_()
        self._counts.zero_()
        self._computed_slots = 0
        return loss_sum / taken if taken else None, work
