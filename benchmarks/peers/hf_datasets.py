"""Hugging Face `datasets`: on the fly as an IterableDataset over an Arrow file, tokenised as a map-style Dataset.

`documented` is what run_mlm.py does: `tokenizer(...)`, `group_texts` on Python lists, dictionaries to the collator.
`tuned` gives whole batches of arrays to the tokenizer's fastest method and to the collator's masking function.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import harness
import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

datasets.disable_progress_bars()
SHUFFLE_BUFFER = 1000
MAP_DOCUMENTS = 100


def items(corpus: str, tokenised: bool) -> Iterator[dict[str, Any]]:
    if tokenised:
        yield from ({"input_ids": row} for row in harness.token_rows(corpus))
    else:
        yield from ({"text": text} for text in harness.read_documents(corpus))


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    """An Arrow file of documents, or of rows that were tokenised and grouped beforehand."""
    if job["tokenised"]:
        features = datasets.Features({"input_ids": datasets.List(datasets.Value("uint16"), length=harness.SEQ_LEN)})
    else:
        features = datasets.Features({"text": datasets.Value("string")})
    given = {"corpus": job["corpus"], "tokenised": job["tokenised"]}
    with tempfile.TemporaryDirectory() as cache:
        made = datasets.Dataset.from_generator(items, features=features, cache_dir=cache, gen_kwargs=given)
        made.save_to_disk(str(Path(job["folder"], "arrow")))
    return {"rows": len(made)}


def text_passes(job: dict[str, Any]) -> datasets.IterableDataset:
    texts = datasets.load_from_disk(str(Path(job["folder"], "arrow"))).to_iterable_dataset(num_shards=8)
    texts = texts.shuffle(seed=harness.SEED, buffer_size=SHUFFLE_BUFFER)
    tokenizer = harness.load_tokenizer(job["corpus"])
    size = harness.SEQ_LEN

    def tokenize(examples: dict[str, Any]) -> dict[str, Any]:
        return tokenizer(examples["text"], return_special_tokens_mask=True)

    def group_texts(examples: dict[str, Any]) -> dict[str, Any]:
        joined = {name: list(chain(*values)) for name, values in examples.items()}
        total = len(joined["input_ids"]) // size * size
        return {name: [v[i : i + size] for i in range(0, total, size)] for name, v in joined.items()}

    def rows(examples: dict[str, Any]) -> dict[str, Any]:
        encoded = tokenizer.backend_tokenizer.encode_batch_fast(examples["text"])
        ids = np.concatenate([np.asarray(text.ids, dtype=np.int64) for text in encoded])
        return {"input_ids": ids[: len(ids) // size * size].reshape(-1, size)}

    if job["variant"] == "documented":
        texts = texts.map(tokenize, batched=True, batch_size=MAP_DOCUMENTS, remove_columns=["text"])
        return texts.map(group_texts, batched=True, batch_size=MAP_DOCUMENTS)
    return texts.map(rows, batched=True, batch_size=MAP_DOCUMENTS, remove_columns=["text"]).with_format("numpy")


class StackedMasker(harness.Masker):
    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return super().__call__(torch.from_numpy(np.stack([example["input_ids"] for example in examples])))


class WholeBatchMasker(harness.Masker):
    def __call__(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return super().__call__(batch["input_ids"].long())


def text_loader(job: dict[str, Any], workers: int) -> DataLoader[Any]:
    documented = job["variant"] == "documented"
    collate = harness.documented_collator(job["corpus"]) if documented else StackedMasker(job["corpus"])
    return DataLoader(text_passes(job), batch_size=harness.ROWS, num_workers=workers, collate_fn=collate)


def token_loader(job: dict[str, Any], workers: int) -> DataLoader[Any]:
    rows = datasets.load_from_disk(str(Path(job["folder"], "arrow")))
    if job["variant"] == "documented":
        collate = harness.documented_collator(job["corpus"])
        return DataLoader(
            rows, harness.ROWS, shuffle=True, num_workers=workers, collate_fn=collate, persistent_workers=workers > 0
        )
    batches = BatchSampler(RandomSampler(rows), harness.ROWS, drop_last=True)
    return DataLoader(
        rows.with_format("torch"),
        batch_size=None,
        sampler=batches,
        num_workers=workers,
        collate_fn=WholeBatchMasker(job["corpus"]),
        persistent_workers=workers > 0,
    )


def make(job: dict[str, Any], workers: int) -> Iterator[dict[str, Any]]:
    loader = (token_loader if job["tokenised"] else text_loader)(job, workers)
    return harness.endless(lambda: loader)


def resume(job: dict[str, Any]) -> dict[str, Any]:
    """Time to the first batch at some steps.

    Tokens: accelerate's `skip_first_batches`, what the Trainer does; on the fly: `state_dict` of the IterableDataset.
    """
    from accelerate import skip_first_batches

    found = {}
    for step in job["steps"]:
        if job["tokenised"]:

            def begin(step: int = step) -> Any:
                loader = token_loader(
                    {**job, "variant": "documented"}, 0
                )  # accelerate skips in a batch sampler of its own
                return skip_first_batches(loader, step % len(loader))
        else:
            stream = text_passes(job)
            reading = iter(DataLoader(stream, harness.ROWS, collate_fn=len))
            if sum(1 for _, _ in zip(range(step), reading, strict=False)) < step:
                break  # the state counts within an epoch
            state = stream.state_dict()

            def begin(state: Any = state) -> Any:
                again = text_passes(job)
                again.load_state_dict(state)
                return DataLoader(again, harness.ROWS, collate_fn=StackedMasker(job["corpus"]))

        found[str(step)] = harness.timed_first_batch(begin)
    return {"first_batch_s": found}


if __name__ == "__main__":
    harness.main({"prepare": prepare, "rate": lambda job: harness.rates(job, make), "resume": resume})
