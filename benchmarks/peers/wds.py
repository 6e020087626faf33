"""webdataset on the very shards that maskloom reads; its own stages up to the documents, then the common rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import numpy as np
import webdataset

SHUFFLE_BUFFER = 1000


class Documents:
    """A stage: samples with a `.jsonl` member to texts."""

    def __call__(self, samples: Any) -> Iterator[str]:
        for sample in samples:
            for line in sample["jsonl"].splitlines():
                yield json.loads(line)["text"]


class Batches:
    """A stage: texts to masked batches."""

    def __init__(self, corpus: str) -> None:
        self.rows, self.masker = harness.FullRows(corpus), harness.Masker(corpus)

    def __call__(self, texts: Any) -> Iterator[dict[str, Any]]:
        return map(self.masker, self.rows(texts))


def make(job: dict[str, Any], workers: int) -> Iterator[dict[str, Any]]:
    shards = sorted(str(path) for path in Path(job["folder"]).glob("train-*.tar"))
    passes = webdataset.DataPipeline(
        webdataset.SimpleShardList(shards),
        webdataset.shuffle(100),
        webdataset.split_by_node,
        webdataset.split_by_worker,
        webdataset.tarfile_to_samples(),
        Documents(),
        webdataset.shuffle(SHUFFLE_BUFFER),
        Batches(job["corpus"]),
    )
    loader = webdataset.WebLoader(passes, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
    return harness.endless(lambda: loader)


def shuffled(job: dict[str, Any]) -> dict[str, Any]:
    """The sample ids of one epoch in the order of its global batches: each rank shuffles its shards, then its buffer."""
    each, ranks = job["each"], job["ranks"]
    orders = []
    for rank in range(ranks):
        shards = webdataset.shuffle(100)(iter(range(rank, job["shards"], ranks)))
        samples = (sample for shard in shards for sample in range(shard * each, (shard + 1) * each))
        orders.append(np.fromiter(webdataset.shuffle(SHUFFLE_BUFFER)(samples), dtype=np.int64))
    rows = job["rank_rows"]
    batches = min(map(len, orders)) // rows
    taken = np.stack([order[: batches * rows].reshape(batches, rows) for order in orders], axis=1)
    np.save(job["out"], taken.reshape(-1))
    return {"samples": taken.size}


if __name__ == "__main__":
    harness.main({"rate": lambda job: harness.rates(job, make), "shuffled": shuffled})
