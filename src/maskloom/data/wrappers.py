"""Loaders that would change the batches of a stream, without a word. A stream asks who iterates over it, and refuses.

A stream gives whole batches, each rank its own. Loaders are made for single examples, so they stack them, cut them, or leave
some to other ranks.
"""

from __future__ import annotations

import sys
from typing import Any

from torch.utils.data import default_collate, get_worker_info

from maskloom.errors import UserError

LOADER = "DataLoader(stream, batch_size=None)"
LOADERS = ("_IterableDatasetFetcher.", "DataLoaderDispatcher.", "IterableDatasetShard.")
"""Beginnings of the names of methods that may change batches."""


def refuse_wrappers() -> None:
    """Look at who called, and at their callers.

    Raises:
        UserError: among them is a loader that would change the batches.
    """
    if get_worker_info() is not None:
        raise UserError(
            "a MaskedStream reads in processes of its own, and num_workers of a DataLoader would give each of its workers all "
            f"batches: use MaskedStream(..., workers=N) and {LOADER}"
        )
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        # Only theirs: to ask a frame for its variables keeps those alive until it ends, before Python 3.13.
        if frame.f_code.co_qualname.startswith(LOADERS) and (fault := _fault_of(frame.f_locals.get("self"))):
            raise UserError(fault)


def _fault_of(caller: Any) -> str:
    """What an object would do to batches, and what to do instead. It is told by names: none of these packages need be there."""
    kind = type(caller).__name__
    if kind == "_IterableDatasetFetcher" and caller.auto_collation and caller.collate_fn is default_collate:
        return (
            "an item of a MaskedStream is a whole batch, and this DataLoader would stack several of them as if they were "
            f"examples: use {LOADER}"
        )
    if kind == "DataLoaderDispatcher":
        return (
            "accelerate would cut the batches of this MaskedStream into slices and send them to other ranks, but each rank "
            "reads its own: leave the loader out of accelerator.prepare. In a Trainer, let get_train_dataloader return "
            f"{LOADER}"
        )
    if kind == "IterableDatasetShard" and caller.num_processes > 1:
        return (
            f"accelerate would keep one of {caller.num_processes} batches of this MaskedStream and drop the others, but each "
            "rank reads its own: leave the loader out of accelerator.prepare. In a Trainer, let get_train_dataloader return "
            f"{LOADER}"
        )
    return ""
