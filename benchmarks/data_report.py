"""`results/data.json` to `docs/benchmarks-data.md` and its plots: every figure there is written by this file."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from page import draw_bars, draw_lines, wrapped

M = 1e6
MIB = 1 << 20
OURS, TUNED = "steps of 256 rows", ("tuned", "steps of 256 rows")


def write(results: dict[str, Any], docs: Path) -> None:
    """Write `benchmarks-data.md` and the plots it shows into the folder of the documentation."""
    sections = {
        "rates": _rates,
        "resume": _resume,
        "order": _order,
        "start": _start,
        "memory": _memory,
        "shuffle": _shuffle,
    }
    parts = [INTRODUCTION]
    for name, section in sections.items():
        if name in results:
            parts.append(section(results[name]["result"], docs))
    parts.append(_stamps({name: results[name] for name in sections if name in results}))
    lines = "\n\n".join(part.strip() for part in parts).split("\n")
    (docs / "benchmarks-data.md").write_text("\n".join(map(wrapped, lines)) + "\n", encoding="utf-8")


INTRODUCTION = """
# Benchmarks of the data layer

maskloom beside Hugging Face `datasets`, webdataset, mosaicml-streaming (its maintained successor `streaming-community`) and
litdata: the same text, the same tokenizer, the same batches, on one machine in one run. `python benchmarks/data.py --report`
writes this file. [benchmarks/README.md](../benchmarks/README.md) says how to run it.
"""


# Sections.


def _rates(result: dict[str, Any], docs: Path) -> str:
    runs = result["runs"]
    alone = statistics.median(run["tokens_per_cpu_s"] for run in result["tokenizer"])
    text = [
        "## Text to masked batches",
        "Batches of 32 rows of 128 slots, 15 % of the tokens masked (80/10/10), as tensors in the training "
        "process. Counted are text tokens: no padding, no `[CLS]`, no `[SEP]`. *A core* is a second of CPU time of "
        "all processes together (readers and the training process). And *wall* is a second of the clock. Figures are "
        "medians over the rounds (least to most). The share is that of text tokens in all slots. maskloom keeps a "
        "piece within a row, and gives every piece its `[CLS]` and `[SEP]`. The peers cut a stream of tokens every "
        "128 slots, across documents.",
    ]
    for tokenised, title in ((False, "### Tokenised on the fly"), (True, "### Tokenised beforehand")):
        text.append(title)
        if not tokenised:
            text.append(
                f"The tokenizer alone, in one process on texts in memory: **{alone / M:.2f} M tokens/s a core**. It "
                "is the bound of everything in this table."
            )
        text.append(_rate_table([run for run in runs if run["tokenised"] == tokenised], None if tokenised else alone))
        text.append(_verdict([run for run in runs if run["tokenised"] == tokenised], None if tokenised else alone))
    draw_bars(
        docs / "benchmarks-data-rates.svg",
        "M text tokens/s a core (2 readers, files in the page cache)",
        [
            (
                "on the fly" if not tokenised else "tokenised beforehand",
                [
                    (name, _median(runs, name, variant, tokenised, 2, False, "tokens_per_cpu_s") / M)
                    for name, variant in _best_first(runs, tokenised)
                    if variant in TUNED
                ],
            )
            for tokenised in (False, True)
        ],
    )
    text.append("![rates](benchmarks-data-rates.svg)")
    text.append(WHAT_EACH_DOES)
    return "\n\n".join(text)


WHAT_EACH_DOES = """
What each does:

- **maskloom**: optimizer steps from the reader processes, cut into micro-batches of 32 rows in the training process.
  They have positions, piece boundaries and the places of the masks. Order, packing and masks are those of a run. Every
  block's CRC-32 is checked. *Steps of 32 rows* sends every micro-batch between processes on its own.
- **datasets, documented**: run_mlm.py's way. On the fly: `IterableDataset` over Arrow with a shuffle buffer of 1000,
  `tokenizer(...)` and `group_texts` in batched `map`s. Beforehand: a map-style `Dataset` of full rows, shuffled.
  Dictionaries go to `DataCollatorForLanguageModeling`.
- **datasets, tuned**: `encode_batch_fast` and NumPy in one `map`; beforehand: a batch of rows is read at once. Rows
  are stacked and go to the collator's own masking function, `torch_mask_tokens`, which skips its padding of full rows
  (3.2 to 0.3 ms a batch).
- **webdataset**: its pipeline on the very shards that maskloom reads, a shuffle buffer of 1000 documents, then
  `encode_batch_fast`, full rows and the same masking function. It has no form of its own for token ids, so it is in
  the first table alone.
- **streaming**: MDS shards of documents (and of rows, as `ndarray:uint16:128`), `shuffle=True` (py1e); then the same.
- **litdata**: optimised chunks of documents (and tokens through its `TokensLoader`), `shuffle=True`; then the same.

Not in these figures: the start of the processes, and the peers' lack of what maskloom's batches carry.
"""


def _rate_table(runs: list[dict[str, Any]], alone: float | None) -> str:
    rows = []
    for name, variant in _best_first(runs, runs[0]["tokenised"]):
        cells = [f"{name}, {variant}"]
        for workers, cold, figure in (
            (1, False, "cpu_"),
            (2, False, "cpu_"),
            (1, False, ""),
            (2, False, ""),
            (2, True, ""),
        ):
            values = _values(runs, name, variant, runs[0]["tokenised"], workers, cold, f"tokens_per_{figure}s")
            cells.append(_spread([value / M for value in values]))
        share = _values(runs, name, variant, runs[0]["tokenised"], 2, False, "text_share")
        rows.append([*cells, f"{100 * statistics.median(share):.1f} %"])
    head = ["M tokens/s", "a core, 1 reader", "a core, 2 readers", "wall, 1", "wall, 2", "wall, 2, cold files", "text"]
    return _table(head, rows)


def _verdict(runs: list[dict[str, Any]], alone: float | None) -> str:
    tokenised = runs[0]["tokenised"]
    peers = {
        name: max(
            _median(runs, name, variant, tokenised, 2, False, "tokens_per_cpu_s")
            for n, variant in _pairs(runs)
            if n == name
        )
        for name, _ in _pairs(runs)
        if name != "maskloom"
    }
    if not peers:
        return ""
    best = max(peers, key=lambda name: peers[name])
    ours = _median(runs, "maskloom", OURS, tokenised, 2, False, "tokens_per_cpu_s")
    text = f"maskloom (2 readers, a core) is at **{ours / peers[best]:.2f} times** the best peer, {best}"
    return text + (f", and at {100 * ours / alone:.0f} % of the tokenizer alone." if alone else ".")


def _resume(result: dict[str, Any], docs: Path) -> str:
    steps = sorted({step for run in result["runs"] for step in run["first_batch_s"]}, key=int)
    rows = []
    for run in result["runs"]:
        how = RESUMES[run["system"], run["tokenised"]]
        times = [f"{run['first_batch_s'][step]:.2f}" if step in run["first_batch_s"] else "-" for step in steps]
        rows.append([run["system"], "tokens" if run["tokenised"] else "text", how, *times])
    return "\n\n".join(
        [
            "## Resume",
            "Seconds from nothing open to the first batch at a step of 32 rows, read in the process itself (the "
            "packages are imported already). webdataset has no resume.",
            _table(["", "from", "how", *(f"step {int(step):,}" for step in steps)], rows),
            "The time of maskloom is that of one block for each of its 8 lanes, whatever the step. On the fly they are "
            "tokenised. Before its first batch `streaming` plans the whole epoch again. That takes no time for a corpus "
            "of this size; the next section has that of a large one.",
        ]
    )


RESUMES = {
    ("maskloom", False): "cursors of the lanes",
    ("maskloom", True): "cursors of the lanes",
    ("datasets", False): "`load_state_dict` (the shuffle buffer is lost; the state must have been reached by reading)",
    ("datasets", True): "accelerate's `skip_first_batches` within the epoch",
    ("streaming", True): "`load_state_dict`",
    ("litdata", True): "`load_state_dict`",
}


def _order(result: dict[str, Any], docs: Path) -> str:
    ours, peer = result["maskloom"], result["streaming"]
    rows = []
    if ours:
        rows.append(
            [
                "maskloom, a block at a time as lanes ask",
                f"{1e6 * ours['one_block_s']:.0f} µs a block",
                _mib(ours["one_block_peak_bytes"]),
                "nothing",
            ]
        )
        rows.append(
            ["maskloom, the whole epoch at once", f"{ours['seconds']:.1f} s", _mib(ours["peak_bytes"]), "nothing"]
        )
    for algorithm, run in (peer or {}).items():
        rows.append(
            [f"streaming, {algorithm}", f"{run['seconds']:.1f} s", _mib(run["peak_bytes"]), _mib(run["kept_bytes"])]
        )
    size = f"{ours['blocks']:,}" if ours else "as many"
    return "\n\n".join(
        [
            "## The order of an epoch",
            f"Of {size} blocks (maskloom) and samples (streaming). For streaming, `get_partitions` and `get_shuffle` are "
            "measured: its `generate_work` runs both once a node before each epoch, here for 8 ranks. Memory is what it "
            "adds at its peak, and what stays for the epoch.",
            _table(["", "time", "peak", "kept"], rows),
        ]
    )


def _start(result: dict[str, Any], docs: Path) -> str:
    rows = [
        [
            run["kind"],
            f"{run['blocks']:,}",
            f"{run['step']:,}",
            str(run["workers"]),
            f"{run['opened_s']:.2f}",
            f"{run['first_batch_s']:.2f}",
            _mib(run["grown_bytes"]),
            _mib(run["peak_bytes"]),
            " + ".join(map(_mib, run["children_bytes"])) or "-",
        ]
        for run in result["runs"]
    ]
    return "\n\n".join(
        [
            "## Start",
            "Seconds to open and verify the index, and (from nothing) to the first batch, 8 lanes in one rank. If there is a "
            "reader process, the start of its interpreter and its imports are in it. If not, everything is imported "
            "already. Column *grown* is the memory of the process that came with it and is not a mapped file's. Column "
            "*peak* is all its resident memory, with imports and the mapped index, of which a node holds one copy. Column "
            "*children* is the fork server's and the reader's own memory. The large index points into the shards of the "
            "small corpus, as many times as needed.",
            _table(["", "blocks", "step", "readers", "open", "first batch", "grown", "peak", "children"], rows),
        ]
    )


def _memory(result: dict[str, Any], docs: Path) -> str:
    lines, rows = [], []
    for kind, run in result.items():
        points = [(blocks, size / MIB) for blocks, size in run["points"]]
        lines.append((kind, points))
        late = [size for blocks, size in points if blocks >= points[-1][0] / 10]
        rows.append(
            [kind, f"{points[-1][0]:,}", f"{points[0][1]:.0f}", f"{late[0]:.0f}", f"{max(late):.0f}", f"{late[-1]:.0f}"]
        )
    draw_lines(docs / "benchmarks-data-memory.svg", "resident memory, MiB, over blocks read", lines)
    head = ["MiB", "blocks", "at the start", "after a tenth", "most from there", "at the end"]
    return "\n\n".join(
        ["## Memory over time", "Resident memory of one process that reads, tokenises, packs and masks.", _table(head, rows),
         "![memory](benchmarks-data-memory.svg)"]
    )  # fmt: skip


def _shuffle(result: dict[str, Any], docs: Path) -> str:
    shape, rows = result["shape"], []
    for name, run in result["systems"].items():
        moved = run["moved"]
        rows.append(
            [
                name,
                f"{moved['mean']:.3f}",
                " / ".join(f"{moved[key]:.3f}" for key in ("p1", "p10", "p50", "p90")),
                f"{run['rank_correlation']:+.3f}",
                f"{run['shards_a_batch']:.0f}",
                f"{1000 * run['neighbours_together']:.2f}",
            ]
        )
    head = [
        "",
        "moved, mean",
        "1 / 10 / 50 / 90 %",
        "rank correlation",
        "shards a batch",
        "neighbours together, per mille",
    ]
    return "\n\n".join(
        [
            "## How well an epoch is mixed",
            f"{shape['shards']:,} shards of {shape['each']:,} rows, {shape['ranks']} ranks, global batches of "
            f"{shape['batch']} rows. A block of maskloom holds {shape['block_samples']} rows. Column *moved* is the "
            "distance between a row's place in the source and in the epoch, as a share of the epoch. Column *neighbours "
            "together* is the share of rows whose next row of the source is in the same global batch. A lane of "
            "maskloom reads a block to its end. So a global batch holds rows of at most as many blocks as there are "
            "lanes. What it reads was shuffled over all shards by `maskloom shards` before.",
            _table(head, rows),
        ]
    )


def _stamps(results: dict[str, Any]) -> str:
    """Where, when and with what each section was measured, and what did not run."""
    lines = ["## The runs"]
    for name, section in results.items():
        stamp, text = section["stamp"], section["text"]
        lines.append(
            f"- **{name}**: {stamp['date'][:16]} UTC, commit {stamp['commit']}, {section['seconds']:.0f} s, "
            f"`{stamp['command']}`, load {stamp['load_average'][0]:.1f} at the end; {stamp['cpu']}, {stamp['cores']} cores, "
            f"{stamp['memory_bytes'] / 2**30:.0f} GiB, {stamp['system']}; "
            f"{text['documents']:,} documents, {text['tokens']:,} text tokens"
        )
        lines += [f"  - did not run: {what}: {reason}" for what, reason in section["failures"].items()]
    newest = max(results.values(), key=lambda section: section["stamp"]["date"])["stamp"]["versions"]
    lines.append("- **versions**: " + ", ".join(f"{package} {version}" for package, version in newest.items()))
    return "\n".join([lines[0], "", *lines[1:]])


# Figures of runs.


def _pairs(runs: Iterable[dict[str, Any]]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((run["system"], run["variant"]) for run in runs))


def _best_first(runs: list[dict[str, Any]], tokenised: bool) -> list[tuple[str, str]]:
    """(system, variant) by their rate a core with two readers, maskloom's first."""
    pairs = _pairs(run for run in runs if run["tokenised"] == tokenised)
    rate = {pair: _median(runs, *pair, tokenised, 2, False, "tokens_per_cpu_s") for pair in pairs}
    return sorted(pairs, key=lambda pair: (pair[0] != "maskloom", -rate[pair]))


def _values(
    runs: list[dict[str, Any]], system: str, variant: str, tokenised: bool, workers: int, cold: bool, figure: str
) -> list[float]:
    wanted = (system, variant, tokenised, workers, cold)
    keys = ("system", "variant", "tokenised", "workers", "cold")
    return [run[figure] for run in runs if tuple(run[key] for key in keys) == wanted]


def _median(*arguments: Any) -> float:
    return statistics.median(_values(*arguments) or [0.0])


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    middle = f"{statistics.median(values):.2f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.2f}-{max(values):.2f})"


def _mib(size: float) -> str:
    return f"{max(size, 0) / MIB:,.0f} MiB"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
