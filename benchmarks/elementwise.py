"""How many bytes a compiled encoder layer moves outside of its matrix products and attention, by Inductor's own count.

    python benchmarks/elementwise.py

On a GPU this traffic, and not arithmetic, is what keeps a BERT from the peak of its matrix units. The count needs no GPU:
what Inductor fuses is decided before code is generated, and every fused kernel knows the sizes of what it reads and writes.
A layer's share is the difference between models of four and of two layers. On a GPU more is fused than on a CPU (the sum of
a residual goes into the LayerNorm behind it), so that the figures are upper bounds there.

The last column follows from them: the share of the peak that is left where the matrix products of the formula in
`model/flops.py` run at `GEMM_SHARE` of the peak, attention at `ATTENTION_SHARE`, and the rest at the bandwidth of a copy.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from torch._inductor import config as inductor
from torch._inductor.scheduler import ExternKernelSchedulerNode, Scheduler
from transformers import BertConfig

from maskloom.data.batch import MicroBatch
from maskloom.model.bert import MaskedLM
from maskloom.model.kernels import KERNELS, dropout

HIDDEN, SEQ_LEN, ROWS, PREDICTED = 256, 128, 64, 19
PEAK_TFLOPS, COPY_BYTES_PER_S = 790.0, 4.3e12  # dense bf16 products and copies of one H200, measured
GEMM_SHARE, ATTENTION_SHARE = 0.85, 0.40


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
    model = MaskedLM(config).to(torch.bfloat16).train()
    model.kernels = KERNELS["compile"]._replace(dropout=dropout.reference)  # a GPU's
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
    print(f"torch {torch.__version__}: a compiled layer in bf16 with dropout moves, beside products and attention,")
    print(
        f"{per_layer['forward']:.0f} h + {per_layer['backward']:.0f} h = {moved:.0f} h bytes a token (h: hidden size)"
    )
    print()
    print(f"one GPU of {PEAK_TFLOPS:.0f} TFLOP/s and {COPY_BYTES_PER_S / 1e12:.1f} TB/s: share of the peak to expect")
    for name, layers, hidden in (("BERT-base", 12, 768), ("BERT-large", 24, 1024)):
        for seq_len in (128, 512):
            predicted = round(0.15 * seq_len)
            attention = 12 * layers * hidden * seq_len**2
            products = 72 * layers * hidden**2 * seq_len + 6 * predicted * (hidden**2 + hidden * 30522)
            seconds = products / GEMM_SHARE + attention / ATTENTION_SHARE
            seconds = seconds / (PEAK_TFLOPS * 1e12) + moved * hidden * layers * seq_len / COPY_BYTES_PER_S
            share = (products + attention) / (PEAK_TFLOPS * 1e12) / seconds
            print(f"  {name:10} {seq_len:4}  {1 / seconds:6,.0f} rows/s  {share:.0%}")


if __name__ == "__main__":
    main()
