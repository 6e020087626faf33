"""Rows to the model's micro-batches: flat buckets of static shape.

Shapes: R rows, S slots a row, T = R*S slots, N pieces (paddings and empty ones included), K predicted tokens at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from maskloom.data.rows import Rows
from maskloom.distributed import World
from maskloom.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class MicroBatch:
    """A bucket of T slots.

    Attributes:
        input_ids: int64 [T].
        positions: int64 [T]; they restart with every piece.
        pieces: int32 [T]; number of the piece within its row; padding is a piece of its own.
        cu_seqlens: int32 [N + 1]; where the pieces begin in the bucket, and T; repeated for the empty pieces that fill N up to
            a multiple of R.
        masked_index: int64 [K]; slots that are predicted; 0 where `weights` is 0.
        targets: int64 [K].
        weights: float32 [K]; 1 for a predicted token, 0 for what fills the shape.
        seq_len: S.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    pieces: torch.Tensor
    cu_seqlens: torch.Tensor
    masked_index: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    seq_len: int

    def pinned_for(self, device: torch.device) -> MicroBatch:
        """In memory from which `to` can copy to `device` without waiting; what takes time, a thread does ahead."""
        return self._each(lambda tensor: tensor.pin_memory()) if device.type == "cuda" else self

    def to(self, device: torch.device) -> MicroBatch:
        """On `device`. There N, the one size that differs between buckets, is marked so that compiled code takes any."""
        moved = self._each(lambda tensor: to_device(tensor, device))
        if device.type != "cpu":  # where attention goes by pieces
            from torch._dynamo import mark_dynamic  # a second to import

            mark_dynamic(moved.cu_seqlens, 0)
        return moved

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> MicroBatch:
        changed: dict[str, Any] = {
            name: change(value) if isinstance(value, torch.Tensor) else value for name, value in vars(self).items()
        }
        return MicroBatch(**changed)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on `device`. CUDA copies it from pinned memory while this process continues. From other memory, the copy
    waits for all the work that the GPU was given before."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # as it is, if it is there already
    return tensor.to(device, non_blocking=True)


def to_host(tensor: torch.Tensor) -> Callable[[], list[float]]:
    """Begin to copy a vector to this process; returns what reads it, waiting on CUDA for the work that was given before this
    call, but not for any that was given after."""
    copy, event = tensor, None
    if tensor.device.type == "cuda":
        copy = tensor.to("cpu", non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()

    def read() -> list[float]:
        if event is not None:
            event.synchronize()
        values: list[float] = copy.tolist()
        return values

    return read


@dataclass(frozen=True)
class Layout:
    """How a global batch falls into micro-batches, the same on every rank, so that collectives meet.

    A rank runs A = ceil(rows / most) micro-batches of ceil(rows / A) rows. `rows` is the largest share that any rank has,
    `most` the configured maximum. Empty rows, of weight 0, fill what is left.
    """

    micro_batches: int
    micro_batch_rows: int
    waste: float
    """Share of the computed rows that are filling."""

    @staticmethod
    def of(lanes: int, rows_a_lane: int, most: int, world: World) -> Layout:
        rows = world.largest_share(lanes) * rows_a_lane
        micro_batches = -(-rows // most)
        each = -(-rows // micro_batches)
        return Layout(micro_batches, each, 1 - lanes * rows_a_lane / (world.size * micro_batches * each))

    def of_smaller(self, lanes: int, rows_a_lane: int, world: World) -> Layout:
        """A smaller batch in micro-batches of the same shape, which nothing has to be compiled for again."""
        micro_batches = -(-world.largest_share(lanes) * rows_a_lane // self.micro_batch_rows)
        computed = world.size * micro_batches * self.micro_batch_rows
        return Layout(micro_batches, self.micro_batch_rows, 1 - lanes * rows_a_lane / computed)


def micro_batches(rows: Rows, layout: Layout, capacity: int, tokenizer: Tokenizer) -> Iterator[MicroBatch]:
    """The micro-batches of one rank's rows, filled up to the layout; `capacity` predicted tokens a row."""
    for number in range(layout.micro_batches):
        part = rows.take(slice(number * layout.micro_batch_rows, (number + 1) * layout.micro_batch_rows))
        yield make_micro_batch(part, layout.micro_batch_rows, capacity, tokenizer)


def make_micro_batch(rows: Rows, size: int, capacity: int, tokenizer: Tokenizer) -> MicroBatch:
    """One bucket of `size` rows of which `rows` are the first and padding is the rest.

    Args:
        capacity: the most predicted tokens that a row can have.
    """
    seq_len = rows.tokens.shape[1]
    missing = size - len(rows)
    if missing:
        padding = np.full((missing, seq_len), tokenizer.pad_id, dtype=np.int32)
        starts = np.zeros((missing, seq_len), dtype=bool)
        starts[:, 0] = True
        rows = Rows.concatenate([rows, Rows(padding, padding, starts, np.zeros_like(starts))])
    slots = np.arange(seq_len)
    piece_starts = np.maximum.accumulate(np.where(rows.starts, slots, 0), axis=1)
    begins = np.flatnonzero(rows.starts)
    empty = (
        -len(begins) % size
    )  # buckets of one size then have few different shapes: none is compiled or captured twice
    chosen = np.flatnonzero(rows.chosen)
    masked_index, targets = np.zeros(size * capacity, np.int64), np.zeros(size * capacity, np.int64)
    masked_index[: len(chosen)] = chosen
    targets[: len(chosen)] = rows.tokens.reshape(-1)[chosen]
    weights = (np.arange(size * capacity) < len(chosen)).astype(np.float32)
    return MicroBatch(
        input_ids=torch.from_numpy(rows.input_ids.reshape(-1).astype(np.int64)),
        positions=torch.from_numpy((slots - piece_starts).reshape(-1)),
        pieces=torch.from_numpy((np.cumsum(rows.starts, axis=1, dtype=np.int32) - 1).reshape(-1)),
        cu_seqlens=torch.from_numpy(np.append(begins, [size * seq_len] * (empty + 1)).astype(np.int32)),
        masked_index=torch.from_numpy(masked_index),
        targets=torch.from_numpy(targets),
        weights=torch.from_numpy(weights),
        seq_len=seq_len,
    )
