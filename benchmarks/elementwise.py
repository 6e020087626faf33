"""How many bytes a compiled encoder layer moves outside of its matrix products and attention, by Inductor's own count, on a CPU.

    python benchmarks/elementwise.py

What Inductor fuses is decided before code is generated, and every fused kernel knows the sizes of what it reads and writes: the
count needs a minute and no GPU. A layer's share is the difference between models of four and of two layers.

It is a CPU's fusion, with torch's own dropout. For a GPU Inductor fuses more, and `make rehearse` counts that
(docs/rehearsal.md): a residual's sum goes into the LayerNorm behind it (here it is written by one kernel and read by the next:
4 h bytes a token more), and the gradients of LayerNorm's weights come from the kernel of its input's (another 4 h). No rate of
a GPU follows from the figures here.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from torch._inductor import config as inductor
from torch._inductor.scheduler import ExternKernelSchedulerNode, Scheduler
from transformers import BertConfig

from maskloom.data.batch import MicroBatch
from maskloom.models.kernels import KERNELS, dropout
from maskloom.models.masked_lm import new_model

HIDDEN, SEQ_LEN, ROWS, PREDICTED = 256, 128, 64, 19


def count_bytes(layers: int) -> Counter[str]:
    """Bytes that the fused kernels of one forward and one backward read and write, by direction."""
    config = BertConfig(
        vocab_size=1024,
        hidden_size=HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=HIDDEN // 64,
        intermediate_size=4 * HIDDEN,
        attention_probs_dropout_prob=0.0,
    )
    model = new_model(config).to(torch.bfloat16).train()
    model.kernels = KERNELS["compile"]._replace(dropout=dropout.reference)  # ours for CPUs is an operator: not counted
    found: Counter[str] = Counter()
    planned = Scheduler.__init__

    def plan(scheduler: Scheduler, *arguments: object, **more: object) -> None:
        planned(scheduler, *arguments, **more)
        direction = "backward" if found else "forward"
        fused = [node for node in scheduler.nodes if not isinstance(node, ExternKernelSchedulerNode)]
        found[direction] = sum(node.get_read_write_buffers_sizes() for node in fused)

    Scheduler.__init__ = plan
    try:
        model.compile(dynamic=False)
        model(micro_batch())[0].backward()
    finally:
        Scheduler.__init__ = planned
    return found


def micro_batch() -> MicroBatch:
    """Rows of one piece each; only their shapes matter."""
    slots = torch.arange(ROWS * SEQ_LEN)
    predicted = torch.from_numpy((np.arange(ROWS)[:, None] * SEQ_LEN + np.arange(PREDICTED)).reshape(-1))
    return MicroBatch(
        input_ids=slots % 1024,
        positions=slots % SEQ_LEN,
        pieces=torch.zeros(len(slots), dtype=torch.int32),
        cu_seqlens=torch.arange(0, len(slots) + 1, SEQ_LEN, dtype=torch.int32),
        masked_index=predicted,
        targets=predicted % 1024,
        weights=torch.ones(len(predicted)),
        seq_len=SEQ_LEN,
    )


def main() -> None:
    inductor.force_disable_caches = True  # a cached graph is not planned again
    few, many = count_bytes(2), count_bytes(4)
    per_layer = {way: (many[way] - few[way]) / 2 / (ROWS * SEQ_LEN * HIDDEN) for way in ("forward", "backward")}
    moved = sum(per_layer.values())
    print(
        f"torch {torch.__version__}: compiled for a CPU, a layer in bf16 with dropout moves, beside products and attention,"
    )
    print(
        f"{per_layer['forward']:.0f} h + {per_layer['backward']:.0f} h = {moved:.0f} h bytes a token (h: hidden size)"
    )


if __name__ == "__main__":
    main()
