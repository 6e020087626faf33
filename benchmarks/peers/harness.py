"""What every system under test shares: the job it is given, the collator, the clock.

A system is a module of this folder that `data.py` starts in an environment of its own, `python NAME.py JOB`, with the job
as JSON. It prints one line `RESULT {...}`. Nothing here imports maskloom: the peers' environments need not have it.

Rates are of the steady state: the clock starts when `WARM_BATCHES` batches have passed, with all queues filled, and stops
`seconds` later; where text is tokenised not before `LEAST_TEXT_TOKENS`, for text is tokenised in pieces of tens of thousands.
CPU seconds are those of the process and of all processes that it started, the waiting apart, so that a rate a core means
the same on a busy machine as on an idle one.

Shapes: R = 32 rows a batch, S = 128 slots a row.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

import numpy as np
import torch

ROWS = 32
SEQ_LEN = 128
RATE = 0.15
SEED = 1
WARM_BATCHES = 64
LEAST_TEXT_TOKENS = 1_500_000
KEPT_EVERY = 16  # one batch of so many is kept, to count its text tokens when the clock has stopped
DOCUMENTS_A_CALL = 64  # texts given to the tokenizer at once
TICKS = os.sysconf("SC_CLK_TCK")
NO_TEXT = (0, 101, 102)  # [PAD], [CLS], [SEP] of bert-base-uncased


def main(functions: dict[str, Callable[[dict[str, Any]], dict[str, Any]]]) -> None:
    """Do the job of the command line with the function that it names; a fault is reported, with its reason."""
    torch.set_num_threads(1)
    job = json.loads(sys.argv[1])
    try:
        result = {"versions": versions, **functions}[job["do"]](job)
    except BaseException as error:
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {error}"[:500]}
    print("RESULT " + json.dumps(result), flush=True)
    # Peers that fail leave worker processes and shared memory, whose clean-up at exit can hang.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def versions(job: dict[str, Any]) -> dict[str, Any]:
    """Versions of packages, as the environment of this system has them."""
    found = {}
    for package in job["packages"]:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


# The text, the tokenizer, the collator.


def read_documents(corpus: str) -> Iterator[str]:
    """The texts of `documents.jsonl`, in order."""
    with Path(corpus, "documents.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def load_tokenizer(corpus: str) -> Any:
    """bert-base-uncased's tokenizer as transformers hands it out, without truncation and padding."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(Path(corpus, "tokenizer.json")),
        **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")},
    )
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


class FullRows:
    """Texts to full rows, as run_mlm.py's `group_texts` makes them: all tokens one after the other, cut every S.

    One call of the tokenizer's fastest method for `DOCUMENTS_A_CALL` texts, and NumPy from there on: what a careful user of
    the peers would write.
    """

    def __init__(self, corpus: str) -> None:
        self.encoder = load_tokenizer(corpus).backend_tokenizer

    def __call__(self, texts: Iterable[str]) -> Iterator[torch.Tensor]:
        """int64 [ROWS, SEQ_LEN] each."""
        left = np.empty(0, dtype=np.int64)
        size = ROWS * SEQ_LEN
        for some in _grouped(texts, DOCUMENTS_A_CALL):
            encoded = self.encoder.encode_batch_fast(some)
            left = np.concatenate([left, *(np.asarray(text.ids, dtype=np.int64) for text in encoded)])
            for start in range(0, len(left) - size + 1, size):
                yield torch.from_numpy(left[start : start + size].reshape(ROWS, SEQ_LEN))
            left = left[len(left) // size * size :]


class Masker:
    """Rows to masked batches with the masking function of Hugging Face's collator, without its detours.

    Called as documented, the collator takes a list of dictionaries and spends nine tenths of its time to pad rows that are
    full: 3.2 ms a batch, and 0.3 ms when its `torch_mask_tokens` is called on the stacked rows.
    """

    def __init__(self, corpus: str) -> None:
        self.collator = documented_collator(corpus)

    def __call__(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        special = (rows == NO_TEXT[0]) | (rows == NO_TEXT[1]) | (rows == NO_TEXT[2])
        input_ids, labels = self.collator.torch_mask_tokens(rows.clone(), special_tokens_mask=special)
        return {"input_ids": input_ids, "labels": labels}


def documented_collator(corpus: str) -> Any:
    from transformers import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(load_tokenizer(corpus), mlm_probability=RATE)


def token_rows(corpus: str) -> Iterator[np.ndarray]:
    """The corpus as full rows of token ids, uint16 [SEQ_LEN] each: what the peers are given tokenised."""
    for batch in FullRows(corpus)(read_documents(corpus)):
        yield from batch.numpy().astype(np.uint16)


def _grouped(items: Iterable[str], size: int) -> Iterator[list[str]]:
    group: list[str] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


# Measuring.


def cpu_seconds() -> float:
    """CPU time of this process, of all that descend from it, and of those of them that have ended."""
    parents: dict[int, list[int]] = {}
    spent: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
            spent[int(entry.name)] = sum(map(int, fields[11:15]))  # utime, stime, and those of children waited for
    total, open_processes = 0, [os.getpid()]
    while open_processes:
        process = open_processes.pop()
        total += spent.get(process, 0)
        open_processes += parents.get(process, [])
    return total / TICKS


def resident_bytes(process: int | str = "self") -> int:
    """Resident memory of a process, of which shared pages are a part."""
    return int(Path("/proc", str(process), "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int:
    """The largest resident memory that this process ever had, or since it was reset by `/proc/self/clear_refs`."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def anonymous_bytes(process: int | str = "self") -> int:
    """Memory that is not a mapped file's: what every further process costs again."""
    text = Path("/proc", str(process), "smaps_rollup").read_text()
    return sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Anonymous:"))


def drop_from_cache(folder: str) -> None:
    """Have the kernel forget the pages of every file in a folder, as after a restart."""
    os.sync()
    for file in Path(folder).rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def endless(make_pass: Callable[[], Iterable[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """One pass over the data after another."""
    while True:
        yield from make_pass()


def rate(
    batches: Iterator[dict[str, Any]], seconds: float, least_slots: float = 0, most_slots: float = float("inf")
) -> dict[str, Any]:
    """Text tokens a second of wall and of CPU time.

    Args:
        batches: dictionaries with `input_ids`, of any shape.
        least_slots: continue until so many have passed.
        most_slots: stop after so many: a pass over files that are not in the page cache ends where it would begin anew.
    """
    asked = time.perf_counter()
    next(batches)
    first_batch_s = time.perf_counter() - asked
    for _ in range(WARM_BATCHES):
        next(batches)
    kept: list[torch.Tensor] = []
    slots = count = 0
    cpu, start = cpu_seconds(), time.perf_counter()
    end = start
    while (end - start < seconds or slots < least_slots) and slots < most_slots:
        ids = next(batches)["input_ids"]
        slots += ids.numel()
        if count % KEPT_EVERY == 0:
            kept.append(ids)
        count += 1
        end = time.perf_counter()
    cpu_s, wall_s = cpu_seconds() - cpu, end - start
    ids = torch.cat([part.reshape(-1) for part in kept])
    text = 1 - float(sum((ids == number).sum() for number in NO_TEXT)) / ids.numel()
    tokens = slots * text
    return {
        "tokens_per_s": tokens / wall_s,
        "tokens_per_cpu_s": tokens / cpu_s,
        "text_share": text,
        "tokens": tokens,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "first_batch_s": first_batch_s,
    }


def rates(job: dict[str, Any], make: Callable[[dict[str, Any], int], Iterator[dict[str, Any]]]) -> dict[str, Any]:
    """Every case (number of workers, cold or warm) of a job of kind `rate`; `make(job, workers)` begins to read."""
    found = []
    for case in job["cases"]:
        if case["cold"]:
            gc.collect()  # a file that is still mapped keeps its pages
            drop_from_cache(job["folder"])
        batches = make(job, case["workers"])
        least = 0 if job["tokenised"] else min(LEAST_TEXT_TOKENS, job["seconds"] * 600_000)
        most = 0.8 * job["corpus_tokens"] if case["cold"] else float("inf")
        found.append({**case, **rate(batches, job["seconds"], least, most)})
        del batches
    return {"cases": found, "maximum_resident_bytes": resident_bytes()}


def timed_first_batch(make: Callable[[], Iterable[dict[str, Any]]]) -> float:
    """Seconds from nothing to the first batch: whatever has to be opened, planned or skipped is in it."""
    start = time.perf_counter()
    next(iter(make()))
    return time.perf_counter() - start
