"""mosaicml-streaming, as its maintained successor streaming-community: MDS shards, of documents and of full rows."""

from __future__ import annotations

import shutil
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from torch.utils.data import IterableDataset

# The package's image data sets import torchvision, which has no build for a CPU-only torch of a registry: they are not needed.
sys.modules["streaming.vision"] = types.ModuleType("streaming.vision")

import streaming  # noqa: E402
from streaming.base.partition import get_partitions  # noqa: E402
from streaming.base.shuffle import get_shuffle  # noqa: E402

SHARD_BYTES = 4 << 20


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    shutil.rmtree(job["folder"], ignore_errors=True)
    tokens = job["tokenised"]
    columns = {"tokens": f"ndarray:uint16:{harness.SEQ_LEN}"} if tokens else {"text": "str"}
    items = harness.token_rows(job["corpus"]) if tokens else harness.read_documents(job["corpus"])
    count = 0
    with streaming.MDSWriter(out=job["folder"], columns=columns, size_limit=SHARD_BYTES) as writer:
        for item in items:
            writer.write({next(iter(columns)): item})
            count += 1
    return {"rows": count}


class Documents(IterableDataset[Any]):
    """Documents of a StreamingDataset to masked batches, in the worker."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.stream = open_stream(job)
        self.rows, self.masker = harness.FullRows(job["corpus"]), harness.Masker(job["corpus"])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self.masker, self.rows(sample["text"] for sample in self.stream))


class StackedMasker(harness.Masker):
    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:  # type: ignore[override]
        rows = np.stack([sample["tokens"] for sample in samples])
        return super().__call__(torch.from_numpy(rows.astype(np.int64)))


class DocumentedCollator:
    def __init__(self, corpus: str) -> None:
        self.collator = harness.documented_collator(corpus)

    def __call__(self, samples: list[dict[str, Any]]) -> Any:
        return self.collator([{"input_ids": sample["tokens"].astype(np.int64)} for sample in samples])


def open_stream(job: dict[str, Any]) -> streaming.StreamingDataset:
    streaming.base.util.clean_stale_shared_memory()
    return streaming.StreamingDataset(
        local=job["folder"], shuffle=True, shuffle_seed=harness.SEED, batch_size=harness.ROWS
    )


def token_loader(job: dict[str, Any], workers: int) -> streaming.StreamingDataLoader:
    collate = DocumentedCollator if job["variant"] == "documented" else StackedMasker
    return streaming.StreamingDataLoader(
        open_stream(job),
        batch_size=harness.ROWS,
        num_workers=workers,
        collate_fn=collate(job["corpus"]),
        persistent_workers=workers > 0,
        drop_last=True,
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
    """Time to the first batch from a state at some steps; the state is five numbers, so that none has to be reached."""
    found = {}
    for step in job["steps"]:

        def begin(step: int = step) -> Any:
            loader = token_loader(job, 0)
            epoch, sample = divmod(step * harness.ROWS, len(loader.dataset))
            loader.load_state_dict(
                {
                    "epoch": epoch,
                    "sample_in_epoch": sample // harness.ROWS * harness.ROWS,
                    "num_canonical_nodes": 64,
                    "shuffle_seed": harness.SEED,
                    "initial_physical_nodes": 1,
                }
            )
            return loader

        found[str(step)] = harness.timed_first_batch(begin)
    return {"first_batch_s": found}


def epoch_order(algorithm: str, job: dict[str, Any]) -> np.ndarray:
    """What `generate_work` computes for one node of 8 ranks: sample ids [ranks, samples], -1 where there is none."""
    sizes = np.full(job["shards"], job["each"], dtype=np.int64)
    nodes = job["canonical_nodes"]
    partition = get_partitions("relaxed", int(sizes.sum()), nodes, 1, job["ranks"], 1, job["rank_rows"])
    block = max(4_000_000 // nodes, 1 << 18)  # the package's own default
    shuffle = get_shuffle(algorithm, sizes, nodes, harness.SEED, 0, block)
    return np.where(partition != -1, shuffle[partition], -1)


def plan(job: dict[str, Any]) -> dict[str, Any]:
    """Time and memory of the plan of one epoch."""
    found = {}
    for algorithm in job["algorithms"]:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM counts from here on
        before = harness.resident_bytes()
        start = time.perf_counter()
        order = epoch_order(algorithm, job)
        seconds = time.perf_counter() - start
        found[algorithm] = {"seconds": seconds, "peak_bytes": harness.peak_bytes() - before, "kept_bytes": order.nbytes}
        del order
    return found


def shuffled(job: dict[str, Any]) -> dict[str, Any]:
    """The sample ids of one epoch in the order of its global batches."""
    work = epoch_order(job["algorithm"], job)[0, :, 0]  # [ranks, batches, rows]
    ids = work.transpose(1, 0, 2).reshape(-1)
    ids = ids[ids >= 0]
    np.save(job["out"], ids)
    return {"samples": len(ids)}


if __name__ == "__main__":
    harness.main(
        {
            "prepare": prepare,
            "rate": lambda job: harness.rates(job, make),
            "resume": resume,
            "plan": plan,
            "shuffled": shuffled,
        }
    )
