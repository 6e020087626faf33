"""maskloom itself, as training reads: optimizer steps of rows from the readers, cut into micro-batches of 32 rows."""

from __future__ import annotations

import cProfile
import io
import pstats
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import numpy as np
import psutil

from maskloom.config import Data, RunConfig
from maskloom.data.batch import Layout, micro_batches
from maskloom.data.cursors import Cursor, LaneCursors, first_cursors
from maskloom.data.hashing import make_key, permutation, permuted
from maskloom.data.index.files import BLOCK, Tokens
from maskloom.data.index.indexing import IndexedShard, write_index
from maskloom.data.index.loading import load_index
from maskloom.data.order import block_at
from maskloom.data.plan import DataPlan
from maskloom.data.stream import Step, read_steps
from maskloom.distributed import World
from maskloom.tokenizers.loading import load_tokenizer

ALONE = World(0, 1)
STEP_ROWS = {"steps of 256 rows": 256, "steps of 32 rows": 32}
LANES = 8
MOST_STEPS = 10**9
PREFETCH_STEPS = Data.model_fields["prefetch_steps"].default


def open_plan(job: dict[str, Any], step_rows: int) -> DataPlan:
    """The plan of a run over the corpus in `folder`; `lanes` of the job, or 8."""
    config = RunConfig.model_validate(
        {
            "run_dir": job["folder"],
            "tokenizer": job["corpus"],
            "seed": harness.SEED,
            "data": {"train": job["folder"], "lanes": job.get("lanes", LANES)},
            "masking": {"rate": harness.RATE},
            "phases": [{"steps": MOST_STEPS, "seq_len": harness.SEQ_LEN, "global_batch_rows": step_rows}],
        }
    )
    return DataPlan.of(
        config.data,
        config.phases,
        config.masking,
        config.seed,
        (load_index(job["folder"]),),
        load_tokenizer(job["corpus"]),
    )


def cursors_amid(plan: DataPlan, job: dict[str, Any], step: int) -> list[LaneCursors]:
    """Where the lanes stand about `step`, each at another place of its block, as in the midst of a run.

    Lanes that all began a block with the first batch would be ahead of the clock by half a block each.
    """
    block_rows = job["corpus_tokens"] / len(plan.corpora[0].train_blocks) / (harness.SEQ_LEN - 2)
    done = step * plan.phases[0].lane_rows / block_rows  # blocks that a lane has behind it
    cursors = []
    for lane in range(plan.lanes):
        blocks, share = divmod(done + lane / plan.lanes, 1.0)
        taken = int(share * 0.9 * block_rows)
        cursors.append((Cursor(lane + int(blocks) * plan.lanes, ((harness.SEQ_LEN, taken),) if taken else ()),))
    return cursors


def batches(plan: DataPlan, steps: Iterator[Step]) -> Iterator[dict[str, Any]]:
    """The micro-batches of steps, as training takes them."""
    layout = Layout.of(plan.lanes, plan.phases[0].lane_rows, harness.ROWS, ALONE)
    capacity = plan.capacity(0)
    for step in steps:
        for batch in micro_batches(step.rows, layout, capacity, plan.tokenizer):
            yield vars(batch)


def make(job: dict[str, Any], workers: int) -> Iterator[dict[str, Any]]:
    plan = open_plan(job, STEP_ROWS[job["variant"]])
    cursors = cursors_amid(plan, job, 100)
    return batches(plan, read_steps(plan, ALONE, cursors, 0, workers=workers, prefetch_steps=PREFETCH_STEPS))


def tokenizer_rate(job: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer alone, in this process: texts of the corpus in memory, ids as a list each, nothing kept."""
    encoder = harness.load_tokenizer(job["corpus"]).backend_tokenizer
    texts = list(harness.read_documents(job["corpus"]))
    groups = [
        texts[start : start + harness.DOCUMENTS_A_CALL] for start in range(0, len(texts), harness.DOCUMENTS_A_CALL)
    ]
    tokens, cpu, start = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() - start < job["seconds"]:
        for group in groups[:8]:
            tokens += sum(len(text.ids) for text in encoder.encode_batch_fast(group, add_special_tokens=False))
        groups = groups[8:] + groups[:8]
    wall_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    return {"tokens_per_s": tokens / wall_s, "tokens_per_cpu_s": tokens / cpu_s, "tokens": tokens}


def count(job: dict[str, Any]) -> dict[str, Any]:
    """Text tokens of the corpus."""
    encoder = harness.load_tokenizer(job["corpus"]).backend_tokenizer
    texts = list(harness.read_documents(job["corpus"]))
    tokens = 0
    for start in range(0, len(texts), 1024):
        encoded = encoder.encode_batch_fast(texts[start : start + 1024], add_special_tokens=False)
        tokens += sum(len(text.ids) for text in encoded)
    return {"documents": len(texts), "tokens": tokens}


def resume(job: dict[str, Any]) -> dict[str, Any]:
    """Time from nothing (no index open, no process started) to the first batch at some steps."""
    found = {}
    for step in job["steps"]:

        def begin(step: int = step) -> Iterator[dict[str, Any]]:
            plan = open_plan(job, harness.ROWS)
            cursors = cursors_amid(plan, job, step) if step else first_cursors(plan.lanes)
            return batches(plan, read_steps(plan, ALONE, cursors, step))

        found[str(step)] = harness.timed_first_batch(begin)
    return {"first_batch_s": found, "lanes": job.get("lanes", LANES)}


def start(job: dict[str, Any]) -> dict[str, Any]:
    """Opening an index and the first batch of one step, with the memory that this process and its readers then hold."""
    before = harness.anonymous_bytes()
    begun = time.perf_counter()
    plan = open_plan(job, job["step_rows"])
    opened_s = time.perf_counter() - begun
    cursors = cursors_amid(plan, job, job["step"]) if job["step"] else first_cursors(plan.lanes)
    reading = batches(plan, read_steps(plan, ALONE, cursors, job["step"], workers=job["workers"]))
    next(reading)
    total_s = time.perf_counter() - begun
    readers = [child.pid for child in psutil.Process().children(recursive=True) if child.memory_info().rss > 64 << 20]
    return {
        "blocks": len(plan.corpora[0].train_blocks),
        "workers": job["workers"],
        "opened_s": opened_s,
        "first_batch_s": total_s,
        "grown_bytes": harness.anonymous_bytes() - before,
        "resident_bytes": harness.resident_bytes(),
        "peak_bytes": harness.peak_bytes(),
        "children_bytes": [harness.anonymous_bytes(process) for process in readers],
    }


def synthesise(job: dict[str, Any]) -> dict[str, Any]:
    """An index of `blocks` blocks that all point into the few shards of the corpus in `source`.

    It lists as many shards as blocks of 128 KiB in shards of 64 MiB would need, each with the blocks of one real shard over
    and over: what is opened, checked, looked up and read is as in a corpus of that size.
    """
    source = load_index(job["source"])
    tables = []
    for number, shard in enumerate(source.shards):
        inside = np.flatnonzero(source.columns["shard"] == number)
        table = np.empty(len(inside), dtype=BLOCK)
        for name in BLOCK.names or ():
            table[name] = source.columns[name][inside]
        url = str(Path(source.url(shard)).absolute())
        tables.append((replace(shard, url=url), np.resize(table, job["shard_blocks"])))
    count = -(-job["blocks"] // job["shard_blocks"])
    text_bytes = source.header["text_bytes"] // len(source.shards)
    indexed = [IndexedShard(*tables[number % len(tables)], text_bytes=text_bytes) for number in range(count)]
    begun = time.perf_counter()
    index = write_index(
        Path(job["folder"]),
        indexed,
        text_key=source.header["text_key"],
        block_bytes=source.header["block_bytes"],
        threshold=source.header["held_out_threshold"],
        tokens=Tokens(**source.header["tokens"]) if source.header["tokens"] else None,
    )
    size = sum(file.stat().st_size for file in Path(job["folder"]).rglob("*") if file.is_file())
    return {"blocks": index.header["blocks"], "shards": count, "bytes": size, "seconds": time.perf_counter() - begun}


def order(job: dict[str, Any]) -> dict[str, Any]:
    """The whole order of one epoch, a block at a time as lanes ask and as one array."""
    size = job["blocks"]
    Path("/proc/self/clear_refs").write_text("5")
    before = harness.resident_bytes()
    begun = time.perf_counter()
    some = 100_000
    for number in range(some):
        block_at(harness.SEED, "corpus", number, size)
    one_s = (time.perf_counter() - begun) / some
    asked = harness.peak_bytes() - before
    begun = time.perf_counter()
    chunk = 1 << 20
    seen = 0
    for first in range(0, size, chunk):
        seen += len(permuted(make_key("order"), np.arange(first, min(first + chunk, size), dtype=np.uint64), size))
    return {
        "blocks": seen,
        "seconds": time.perf_counter() - begun,
        "peak_bytes": harness.peak_bytes() - before,
        "one_block_s": one_s,
        "one_block_peak_bytes": asked,
        "kept_bytes": 0,
    }


def memory(job: dict[str, Any]) -> dict[str, Any]:
    """Resident memory of a process while it reads `blocks` blocks, the corpus again and again."""
    plan = open_plan(job, harness.ROWS)
    points = []
    begun = time.perf_counter()
    for step in read_steps(plan, ALONE, first_cursors(plan.lanes), 0):
        if step.number % 50 == 0:
            done = max(cursors[0].number for cursors in step.cursors.values())
            points.append((done, harness.resident_bytes()))
            if done >= job["blocks"]:
                break
    return {"points": points[:: max(1, len(points) // 200)], "seconds": time.perf_counter() - begun}


def shuffled(job: dict[str, Any]) -> dict[str, Any]:
    """The order in which an epoch's samples come, if every block holds `block_samples` of one row each.

    The lanes take turns; a block's samples come in the order of a hash. Ranks and readers make no difference.
    """
    each, lanes = job["block_samples"], job["lanes"]
    blocks = job["shards"] * job["each"] // each
    opened = permuted(make_key(harness.SEED, "corpus", "order", 0), np.arange(blocks, dtype=np.uint64), blocks)
    inside = [permutation(make_key(harness.SEED, "corpus", 0, int(block), "rows"), each) for block in opened]
    samples = opened.astype(np.int64)[:, None] * each + np.stack(inside)  # [blocks, each] in order of opening
    # A lane does not begin its blocks with the others: their lengths differ, and after a while the lanes stand anywhere.
    turns = np.concatenate(
        [
            np.roll(samples[lane::lanes].reshape(-1), -lane * each // lanes)[: blocks // lanes * each]
            for lane in range(lanes)
        ]
    ).reshape(lanes, -1)
    rows = job["batch"] // lanes
    steps = turns.shape[1] // rows
    taken = turns[:, : steps * rows].reshape(lanes, steps, rows).transpose(1, 0, 2)
    np.save(job["out"], taken.reshape(-1))
    return {"samples": taken.size}


def profile(job: dict[str, Any]) -> dict[str, Any]:
    """Where a reader's time goes: cProfile over the reader and the making of micro-batches, in one process."""
    plan = open_plan(job, STEP_ROWS[job["variant"]])
    reading = batches(plan, read_steps(plan, ALONE, cursors_amid(plan, job, 100), 0))
    for _ in range(harness.WARM_BATCHES):
        next(reading)
    profiler = cProfile.Profile(time.process_time)
    profiler.enable()
    slots = 0
    for _ in range(job["batches"]):
        slots += next(reading)["input_ids"].numel()
    profiler.disable()
    out = io.StringIO()
    stats = pstats.Stats(profiler, stream=out).sort_stats("tottime")
    stats.print_stats(job["lines"])
    total = stats.total_tt  # type: ignore[attr-defined]
    return {"text": out.getvalue(), "total_s": total, "slots": slots}


if __name__ == "__main__":
    functions = (tokenizer_rate, count, resume, start, synthesise, order, memory, shuffled, profile)
    harness.main(
        {"rate": lambda job: harness.rates(job, make), **{function.__name__: function for function in functions}}
    )
