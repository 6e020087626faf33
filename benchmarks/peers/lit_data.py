"""litdata: optimised chunks of documents, and of tokens read by its TokensLoader."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import harness
import litdata
import numpy as np
import torch
from litdata.streaming.item_loader import TokensLoader
from torch.utils.data import IterableDataset

CHUNK_BYTES = 4 << 20
PARTS = 16


def _documents_of(job_and_part: tuple[str, int]) -> Iterator[str]:
    corpus, part = job_and_part
    for number, text in enumerate(harness.read_documents(corpus)):
        if number % PARTS == part:
            yield text


def _tokens_of(job_and_part: tuple[str, int]) -> Iterator[torch.Tensor]:
    corpus, part = job_and_part
    for batch in harness.FullRows(corpus)(_documents_of((corpus, part))):
        yield torch.from_numpy(batch.numpy().astype(np.uint16)).reshape(-1)


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    shutil.rmtree(job["folder"], ignore_errors=True)
    tokens = job["tokenised"]
    litdata.optimize(
        fn=_tokens_of if tokens else _documents_of,
        inputs=[(job["corpus"], part) for part in range(PARTS)],
        output_dir=job["folder"],
        chunk_bytes=None if tokens else CHUNK_BYTES,
        chunk_size=CHUNK_BYTES // 2 // harness.SEQ_LEN * harness.SEQ_LEN if tokens else None,
        item_loader=TokensLoader(block_size=harness.SEQ_LEN) if tokens else None,
        num_workers=1,
        verbose=False,
    )
    return {"rows": len(open_stream(job))}


class Documents(IterableDataset[Any]):
    """Documents of a StreamingDataset to masked batches, in the worker."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.stream = open_stream(job)
        self.rows, self.masker = harness.FullRows(job["corpus"]), harness.Masker(job["corpus"])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self.masker, self.rows(self.stream))


class StackedMasker(harness.Masker):
    def __call__(self, rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return super().__call__(torch.stack(rows).long())


class DocumentedCollator:
    def __init__(self, corpus: str) -> None:
        self.collator = harness.documented_collator(corpus)

    def __call__(self, rows: list[torch.Tensor]) -> Any:
        return self.collator([{"input_ids": row.long()} for row in rows])


def open_stream(job: dict[str, Any]) -> litdata.StreamingDataset:
    loader = TokensLoader(block_size=harness.SEQ_LEN) if job["tokenised"] else None
    return litdata.StreamingDataset(job["folder"], item_loader=loader, shuffle=True, seed=harness.SEED)


def token_loader(job: dict[str, Any], workers: int) -> litdata.StreamingDataLoader:
    collate = DocumentedCollator if job["variant"] == "documented" else StackedMasker
    return litdata.StreamingDataLoader(
        open_stream(job),
        batch_size=harness.ROWS,
        num_workers=workers,
        collate_fn=collate(job["corpus"]),
        persistent_workers=workers > 0,
    )


def make(job: dict[str, Any], workers: int) -> Iterator[dict[str, Any]]:
    if job["tokenised"]:
        loader: Any = token_loader(job, workers)
    else:
        loader = torch.utils.data.DataLoader(
            Documents(job), batch_size=None, num_workers=workers, persistent_workers=workers > 0
        )
    return harness.endless(lambda: loader)


def resume(job: dict[str, Any]) -> dict[str, Any]:
    """Time to the first batch from its own state, which is moved to the step that is wanted."""
    reading = token_loader(job, 0)
    next(iter(reading))
    state = reading.state_dict()
    length = len(open_stream(job))
    found = {}
    for step in job["steps"]:
        epoch, sample = divmod(step * harness.ROWS, length)
        sample = sample // harness.ROWS * harness.ROWS
        moved = {
            **state,
            "current_epoch": epoch + 1,
            "num_samples_yielded": sample,
            "dataset": {
                **state["dataset"],
                "current_epoch": epoch + 1,
                "num_samples_yielded": sample,
                "sample_in_epoch": sample,
            },
        }

        def begin(moved: Any = moved) -> Any:
            loader = token_loader(job, 0)
            loader.load_state_dict(moved)
            return loader

        found[str(step)] = harness.timed_first_batch(begin)
    return {"first_batch_s": found}


if __name__ == "__main__":
    harness.main({"prepare": prepare, "rate": lambda job: harness.rates(job, make), "resume": resume})
