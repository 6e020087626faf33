"""A model that is scored, of whatever kind: what it loses on masked tokens.

The logits of a micro-batch are its largest tensor, most of it for slots that nobody asked for. So the last projection, if the
model has one, gets the masked slots alone. Rows of about one length go together, and little is padding.

Shapes: R rows, S slots a row, K masked slots, D hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from maskloom.errors import UserError
from maskloom.tokenizers.base import Int32s, Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST_SLOTS = 4096  # of a micro-batch; on a CPU more gain nothing
MOST_LOGITS = 1 << 25  # numbers at once: 128 MiB


@dataclass(frozen=True)
class Row:
    """Tokens with masks, and what is behind some of the masks.

    Attributes:
        ids: int32 [S], with the first and the last token, and with masks.
        places: int64 [K]; the slots that are predicted.
        targets: int64 [K].
    """

    ids: Int32s
    places: NDArray[np.int64]
    targets: NDArray[np.int64]


@dataclass(frozen=True)
class Scored:
    """A model to score.

    Attributes:
        name: what the output calls it.
        model: in fp32 and in evaluation mode.
        longest_piece: the most slots that it reads.
    """

    name: str
    model: PreTrainedModel
    tokenizer: Tokenizer
    longest_piece: int

    def row(self, ids: Int32s, masked: NDArray[np.int64], predicted: NDArray[np.int64]) -> Row:
        """A row of text tokens, of which `masked` are masked and `predicted`, places among them, are predicted."""
        tokenizer = self.tokenizer
        slots = np.concatenate([[tokenizer.cls_id], ids, [tokenizer.sep_id]]).astype(np.int32)
        slots[masked + 1] = tokenizer.mask_id
        return Row(slots, predicted + 1, ids[predicted].astype(np.int64))

    def losses(self, rows: Sequence[Row], advance: Callable[[float], None] = lambda rows: None) -> tuple[Any, Any]:
        """Loss and hit of each predicted token, in the order of the rows.

        Args:
            advance: is told the number of rows that are done.

        Returns:
            float64 [K] cross-entropies (nats), and bool [K]: whether the token is the likeliest.
        """
        ends = np.cumsum([len(row.places) for row in rows])
        losses, hits = np.zeros(ends[-1] if rows else 0), np.zeros(ends[-1] if rows else 0, bool)
        vocabulary = self.model.get_input_embeddings().num_embeddings
        for batch in _batches(rows, vocabulary):
            found = self._losses_of([rows[number] for number in batch])
            start = 0
            for number in batch:
                count = len(rows[number].places)
                into = slice(ends[number] - count, ends[number])
                losses[into], hits[into] = (part[start : start + count] for part in found)
                start += count
            advance(len(batch))
        if not np.isfinite(losses).all():
            raise UserError(f"{self.name} gives losses that are not finite (NaN or infinite): fetch its weights again")
        return losses, hits

    def _losses_of(self, rows: Sequence[Row]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """As `losses`, of one micro-batch."""
        device = self.model.device
        ids = torch.full((len(rows), max(len(row.ids) for row in rows)), self.tokenizer.pad_id)
        attended = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row.ids)] = torch.from_numpy(row.ids)
            attended[number, : len(row.ids)] = 1
        in_row = torch.tensor([number for number, row in enumerate(rows) for _ in row.places], device=device)
        slots = torch.from_numpy(np.concatenate([row.places for row in rows])).to(device)
        targets = torch.from_numpy(np.concatenate([row.targets for row in rows])).to(device)
        with torch.inference_mode():
            logits = _logits_at(self.model, ids.to(device), attended.to(device), in_row, slots).float()
            losses = F.cross_entropy(logits, targets, reduction="none")
            hits = logits.argmax(-1) == targets
        return losses.double().cpu().numpy(), hits.cpu().numpy()


def _batches(rows: Sequence[Row], vocabulary: int) -> Iterator[list[int]]:
    """Numbers of rows that go together, the longest first: if there is too little memory, that shows at once."""
    batch: list[int] = []
    predicted = 0
    for number in sorted(range(len(rows)), key=lambda number: -len(rows[number].ids)):
        count = len(rows[number].places)
        slots = len(rows[batch[0]].ids) * (len(batch) + 1) if batch else 0
        if batch and (slots > MOST_SLOTS or (predicted + count) * vocabulary > MOST_LOGITS):
            yield batch
            batch, predicted = [], 0
        batch.append(number)
        predicted += count
    if batch:
        yield batch


def _logits_at(
    model: PreTrainedModel, ids: torch.Tensor, attended: torch.Tensor, in_row: torch.Tensor, slots: torch.Tensor
) -> torch.Tensor:
    """Logits [K, V] of some slots of rows [R, S]."""
    shape, was_cut = ids.shape, False

    def select(module: object, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        nonlocal was_cut
        if len(given) != 1 or given[0].shape[:2] != shape:
            return None
        was_cut = True
        return (given[0][in_row, slots].unsqueeze(0),)

    projection = model.get_output_embeddings()
    with contextlib.ExitStack() as stack:
        if isinstance(projection, torch.nn.Linear):
            stack.callback(projection.register_forward_pre_hook(select).remove)
        logits: torch.Tensor = model(input_ids=ids, attention_mask=attended).logits
    return logits[0] if was_cut else logits[in_row, slots]
