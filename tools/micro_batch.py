"""How many rows a micro-batch may have on a GPU, by its memory.

    python tools/micro_batch.py                      the table of docs/throughput.md
    python tools/micro_batch.py --gpus 8 --zero-stage 2
    python tools/micro_batch.py --checkpointing      with engine.activation_checkpointing

Derived, not measured: no GPU has confirmed these figures. They are for bf16, `engine.kernels: compile`, AdamW and several
micro-batches a step. Of N parameters, a slot, L layers of width h, a vocabulary V and a share r of predicted tokens:

    a rank        what `maskloom doctor` counts: weights, gradients and the share of the optimizer's state; and 4 N bytes, as
                  half precision sums the gradients of several micro-batches in fp32
    a slot        L c h bytes that the layers keep for the backward, m h that one layer moves in its backward, and r V (4 + 4 s)
                  for the logits, their gradient, and the largest fp32 part of them

c, m and s are read from benchmarks/results/rehearsal.json: they are those of the graphs that were compiled for a Hopper
(docs/rehearsal.md). m is more than what that layer holds at once. With checkpointing, layers keep their input alone, 2 h bytes,
and one layer keeps c h. A GPU is filled to 90 %, after 1.5 GiB for CUDA, NCCL and cuBLAS: both are rules of thumb.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import BertConfig, ModernBertConfig

from maskloom.config import Engine, Optimizer
from maskloom.launch.doctor.machine import rank_bytes
from maskloom.models.outline import parameters_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

REHEARSAL = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "rehearsal.json"
GPUS_GB = {"16 GB": 16, "24 GB": 24, "40 GB": 40, "80 GB": 80, "141 GB (H200)": 141}
SEQ_LENS = (128, 512, 1024)
MOST_SLOTS = 131_072
"""Of a micro-batch in the table. More slots make no product larger in a way that counts (a rule of thumb)."""
RESERVED_BYTES = int(1.5 * 2**30)
FILLED = 0.9
VOCABULARY_MULTIPLE = 64
"""The head pads the vocabulary to this on a GPU."""
HALF, SINGLE = 2, 4
"""Bytes of a number in bf16 and in fp32."""


@dataclass(frozen=True)
class Case:
    """A model of the table.

    Attributes:
        config: its shape.
        rate: share of the tokens that are predicted.
        rehearsed: the case of the rehearsal whose layers are like its own.
    """

    name: str
    config: PretrainedConfig
    rate: float
    rehearsed: str


CASES = (
    Case("BERT-base", BertConfig(), 0.15, "base-128"),
    Case(
        "BERT-large",
        BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
        0.15,
        "large-128",
    ),
    Case("ModernBERT-base", ModernBertConfig(), 0.3, "modernbert-base-1024"),
)


def bytes_a_slot(case: Case, checkpointing: bool = False) -> float:
    """What a slot of a micro-batch takes at the peak of a step."""
    facts = json.loads(REHEARSAL.read_text())["compile"][case.rehearsed]["ours"]
    compiled = facts["case"]
    slots = compiled["micro_batch_rows"] * compiled["seq_len"]
    kept = facts["saved_bytes_a_layer"] / slots
    moved = sum(work["bytes"] for work in facts["layer"]["backward"].values()) / slots
    width, layers = case.config.hidden_size, case.config.num_hidden_layers
    in_layers = layers * HALF * width + kept if checkpointing else layers * kept
    vocabulary = -(-case.config.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    in_fp32 = facts["largest_fp32"] / facts["predicted"]  # elements, a predicted token
    return in_layers + moved + case.rate * (2 * HALF * vocabulary + SINGLE * in_fp32)


def bytes_a_rank(case: Case, zero_stage: int, gpus: int) -> int:
    """What a rank takes, whatever its micro-batch."""
    parameters = parameters_of(case.config)
    engine = Engine.model_validate({"precision": "bf16", "zero_stage": zero_stage})
    return rank_bytes(engine, Optimizer(), parameters, gpus) + SINGLE * parameters + RESERVED_BYTES


def most_rows(case: Case, gpu_gb: float, seq_len: int, zero_stage: int, gpus: int, checkpointing: bool) -> int:
    """Rows of the largest micro-batch that fits, at most `MOST_SLOTS`; 0 if none does. `gpu_gb`: 10^9 bytes."""
    free = FILLED * gpu_gb * 1e9 - bytes_a_rank(case, zero_stage, gpus)
    return rounded(min(int(free / bytes_a_slot(case, checkpointing)), MOST_SLOTS) // seq_len)


def rounded(rows: int) -> int:
    """The largest of 1, 2, 3, 4, 6, 8, 12, ... that is not above `rows`."""
    steps = [factor << power for power in range(31) for factor in (1, 3)]
    return max((step for step in steps if step <= rows), default=0)


def table(zero_stage: int = 1, gpus: int = 1, checkpointing: bool = False) -> str:
    """The Markdown table: a line for each model and length, a column for each GPU."""
    lines = [["model", "slots a row", *GPUS_GB], ["---"] * (2 + len(GPUS_GB))]
    for case in CASES:
        for seq_len in SEQ_LENS:
            if seq_len > case.config.max_position_embeddings:
                continue
            rows = [most_rows(case, size, seq_len, zero_stage, gpus, checkpointing) for size in GPUS_GB.values()]
            lines.append([case.name, f"{seq_len:,}", *(f"{number:,}" if number > 0 else "-" for number in rows)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Rows of a micro-batch by the memory of a GPU, derived.")
    parser.add_argument("--zero-stage", type=int, choices=range(4), default=1)
    parser.add_argument("--gpus", type=int, default=1, help="ranks that share what ZeRO cuts (default: %(default)s)")
    parser.add_argument("--checkpointing", action="store_true", help="with engine.activation_checkpointing")
    given = parser.parse_args(arguments)
    print(table(given.zero_stage, given.gpus, given.checkpointing))
    return 0


if __name__ == "__main__":
    sys.exit(main())
