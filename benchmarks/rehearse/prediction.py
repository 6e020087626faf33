"""From what was compiled to rows a second of one H200: a sum of four kinds of work, each at a speed that is assumed.

    step = micro-batches * (layers * layer + rest) + optimizer

where a layer, and what is left of a pass (embeddings, head, loss), are

    matrix products     FLOPs / (share * best product)
    attention           the larger of FLOPs / rate and bytes / bandwidth
    Inductor's kernels  each the larger of bytes / bandwidth and issued instructions / issue rate
    launches            number * gap between two kernels

The bytes, instructions and launches are those of the compiled code (`rehearse.compiling`). What is not known of the GPU is in
`CAUTIOUS` and `HOPEFUL`, the two ends of a range. Rows are full, of one piece, with the case's share of the tokens predicted.
Nothing here waits: not for data, not for the host, not for other ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from step.cases import Case
from step.summary import shape_of

from maskloom.data.rows import count_pairs
from maskloom.models.flops import training_flops

BEST_PRODUCT_FLOPS = 790e12
"""FLOP/s in bf16 of an H200's best matrix product. Measured with torch alone; `benchmarks/gpu/probe.py` does it again."""
COPY_BYTES_PER_S = 4.3e12
"""Of a large copy within its memory, read and written bytes counted. Measured as the products."""
SHEET_FLOPS, SHEET_BYTES_PER_S = 989e12, 4.8e12
"""What its data sheet has of both."""
ISSUE_PER_S = 132 * 4 * 1.755e9
"""Instructions of warps: multiprocessors, schedulers of each, and a clock that they hold under load."""
ALIGNMENT = 64
"""What the vocabulary is padded to a multiple of."""
QUERIES_A_TILE = 128
"""Queries that FlashAttention takes at once: with a window they see so many keys more than a single one does."""


@dataclass(frozen=True)
class Speeds:
    """What a GPU is assumed to reach.

    Attributes:
        product_share: of `BEST_PRODUCT_FLOPS`, over the shapes of a layer and head, biases included.
        copy_share: of `COPY_BYTES_PER_S`, of a fused kernel.
        attention_flops: FLOP/s of FlashAttention 2, heads of 64, forward and backward together, rows of 512 and more. Dao (2023)
            has 215 TFLOP/s for rows of 512 and 254 for 1,024 on an H100.
        attention_copy_share: of `COPY_BYTES_PER_S` where its bytes bound it, as with rows of 128.
        gap_s: between the end of a kernel and the full occupation by the next.
        optimizer_bytes: read and written a parameter and step: gradients that are added up, their norm, AdamW in fp32, and the
            bf16 copy.
    """

    product_share: float
    copy_share: float
    attention_flops: float
    attention_copy_share: float
    gap_s: float
    optimizer_bytes: int


CAUTIOUS = Speeds(0.74, 0.85, 180e12, 0.60, 3e-6, 60)
HOPEFUL = Speeds(0.84, 0.90, 230e12, 0.88, 1e-6, 40)

ATTENTION_BYTES = 44
"""A token, layer and unit of width, in bf16. Forward: query, key, value read, output written, 8. Backward: these and the
output's gradient read, 10, the output twice for its product with it, 4; three gradients written, 6; query's is added up in
fp32: set to zero, 4, added to, 8, converted, 4."""


@dataclass(frozen=True)
class Parts:
    """Seconds of a step by kind of work."""

    products: float
    attention: float
    elementwise: float
    launches: float
    optimizer: float

    @property
    def total(self) -> float:
        return self.products + self.attention + self.elementwise + self.launches + self.optimizer


def step_parts(facts: dict[str, Any], speeds: Speeds) -> Parts:
    """Of a case's optimizer step, from the facts of its compilation (`compiling.facts_of`)."""
    case, shape = facts["case"], shape_of(facts["case"])
    layers, hidden, rows = case["layers"], case["hidden_size"], case["micro_batch_rows"]
    slots, micro_batches = rows * case["seq_len"], case["step_rows"] // rows
    padding = hidden * (-Case.loads(case).vocab_size % ALIGNMENT)
    product_flops = 6 * shape.matrices * slots + 6 * facts["predicted"] * (shape.head + padding)
    groups = [(layers, works) for works in facts["layer"].values()] + [(1, works) for works in facts["rest"].values()]
    return Parts(
        products=micro_batches * product_flops / (speeds.product_share * BEST_PRODUCT_FLOPS),
        attention=micro_batches
        * sum(count * attention_s(hidden, slots, case["seq_len"], window, speeds) for window, count in shape.windows),
        elementwise=micro_batches * sum(times * elementwise_s(works, speeds) for times, works in groups),
        launches=micro_batches
        * speeds.gap_s
        * sum(times * work["launches"] for times, works in groups for work in works.values()),
        optimizer=parameters(case) * speeds.optimizer_bytes / COPY_BYTES_PER_S,
    )


def attention_s(hidden: int, slots: int, seq_len: int, window: int | None, speeds: Speeds) -> float:
    """Seconds of one layer's attention over rows of one piece, forward and backward.

    Args:
        window: slots that a slot sees to either side; None for the whole row.
    """
    keys = seq_len if window is None else min(seq_len, QUERIES_A_TILE + 2 * window)
    moving_s = ATTENTION_BYTES * hidden * slots / (speeds.attention_copy_share * COPY_BYTES_PER_S)
    return max(12 * hidden * slots * keys / speeds.attention_flops, moving_s)


def elementwise_s(works: dict[str, dict[str, Any]], speeds: Speeds) -> float:
    """Seconds of Inductor's kernels and of torch's own for random numbers and sums; products and attention have no bytes.

    What the first or the last layer does less than the others is negative.
    """
    seconds = 0.0
    for work in works.values():
        moving_s = work["bytes"] / (speeds.copy_share * COPY_BYTES_PER_S)
        seconds += max(moving_s, (work["issued"] or 0) / ISSUE_PER_S) if work["bytes"] > 0 else moving_s
    return seconds


def rows_per_s(facts: dict[str, Any]) -> tuple[float, float]:
    """The cautious and the hopeful figure."""
    cautious, hopeful = (facts["case"]["step_rows"] / step_parts(facts, speeds).total for speeds in (CAUTIOUS, HOPEFUL))
    return cautious, hopeful


def utilisation(facts: dict[str, Any], rate: float) -> float:
    """Share of the best product that the model's FLOPs are, at `rate` rows/s."""
    case, shape = facts["case"], shape_of(facts["case"])
    predicted, seq_len = facts["predicted"] // case["micro_batch_rows"], np.array(case["seq_len"])
    pairs = [int(count_pairs(seq_len, window)) for window in shape.distinct_windows]
    return rate * training_flops(shape, int(seq_len), pairs, predicted) / BEST_PRODUCT_FLOPS


def parameters(case: dict[str, Any]) -> int:
    """Matrices of the layers and of the head, whose largest is the embeddings; what is left is less than a hundredth."""
    shape = shape_of(case)
    return shape.matrices + shape.head
