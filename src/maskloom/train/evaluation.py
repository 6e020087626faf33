"""Held-out loss, perplexity and accuracy: a finite pass with masks that never change."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch

from maskloom.config import Evaluation
from maskloom.data.batch import MicroBatch, make_micro_batch
from maskloom.data.index import Index
from maskloom.data.masking import MaskRule
from maskloom.data.stream import Rows, held_out_rows
from maskloom.distributed import World, max_over_ranks, sum_over_ranks
from maskloom.tokenizer import Tokenizer

Forward = Callable[[MicroBatch], tuple[torch.Tensor, torch.Tensor]]
ENTROPY_BLOCKS = 64  # about 8 MiB of text: enough for the entropy of a vocabulary to two digits


def evaluate(
    forward: Forward, index: Index, tokenizer: Tokenizer, settings: Evaluation, device: torch.device, world: World
) -> dict[str, float]:
    """Run the held-out documents through `forward`, each counted once, whatever the number of ranks.

    Args:
        forward: what `MaskedLM.forward` is; the caller puts the model into evaluation mode.

    Returns:
        `evaluation_loss` (nats a predicted token), `evaluation_perplexity`, `evaluation_accuracy`, and the number of
        predicted tokens, `evaluation_tokens`.
    """
    seq_len = settings.seq_len
    assert seq_len is not None, "RunConfig.evaluation_filled fills it"
    rule = MaskRule(settings.mask_rate)
    mine = list(_buckets(held_out_rows(index, tokenizer, seq_len, rule, world), settings.micro_batch_rows))
    # Ranks run the same number of micro-batches, or the collectives of ZeRO-3 would not meet.
    count = int(max_over_ranks(torch.tensor([len(mine)], device=device)))
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    with torch.no_grad():
        for number in range(count):
            rows = mine[number] if number < len(mine) else _no_rows(seq_len)
            batch = make_micro_batch(rows, settings.micro_batch_rows, rule, tokenizer).to(device)
            loss, hits = forward(batch)
            sums += torch.stack([loss.double(), hits.double(), batch.weights.double().sum()])
    loss_sum, hit_sum, tokens = sum_over_ranks(sums).tolist()
    if not tokens:
        return {}
    mean = loss_sum / tokens
    return {
        "evaluation_loss": mean,
        "evaluation_perplexity": math.exp(min(mean, 700.0)),
        "evaluation_accuracy": hit_sum / tokens,
        "evaluation_tokens": tokens,
    }


def unigram_entropy(index: Index, tokenizer: Tokenizer) -> float:
    """Entropy (nats a token) of the corpus's token frequencies, from at most 64 blocks spread over it.

    It is the loss of a model that knows how often each token occurs and nothing of its context: what a trained model
    must beat.
    """
    blocks = index.train_blocks
    chosen = blocks[np.unique(np.linspace(0, len(blocks) - 1, ENTROPY_BLOCKS).astype(np.int64))]
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    for block in chosen:
        for ids in tokenizer.encode(index.documents(int(block), "train")):
            counts += np.bincount(ids, minlength=tokenizer.vocab_size)
    counts[~tokenizer.is_maskable] = 0  # what is never predicted
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(shares * np.log(shares)).sum())


def _buckets(parts: Iterator[Rows], size: int) -> Iterator[Rows]:
    """The rows of `parts` in groups of `size`, the last one smaller."""
    held: Rows | None = None
    for part in parts:
        held = part if held is None else Rows.concatenate([held, part])
        while len(held) >= size:
            yield held.take(slice(0, size))
            held = held.take(slice(size, None))
    if held is not None and len(held):
        yield held


def _no_rows(seq_len: int) -> Rows:
    ids, flags = np.zeros((0, seq_len), np.int32), np.zeros((0, seq_len), bool)
    return Rows(ids, ids, flags, flags)
