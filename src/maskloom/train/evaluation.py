"""Held-out loss, perplexity and accuracy: a finite pass with masks that never change."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Generator, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from maskloom.config import Evaluation
from maskloom.data.ahead import ahead
from maskloom.data.batch import MicroBatch, make_micro_batch, to_device
from maskloom.data.index.corpus import Index
from maskloom.data.masking import MaskRule
from maskloom.data.rows import Rows
from maskloom.data.stream import held_out_rows
from maskloom.distributed import World, max_over_ranks, sum_over_ranks
from maskloom.tokenizers.base import Tokenizer

Forward = Callable[[MicroBatch], tuple[torch.Tensor, torch.Tensor]]
BATCHES_HELD = 16  # micro-batches after which ranks agree on their number again: memory stays bounded
ENTROPY_BLOCKS = 64  # about 8 MiB of text: enough for the entropy of a vocabulary to two digits


def evaluate(
    forward: Forward,
    corpora: Sequence[Index],
    tokenizer: Tokenizer,
    settings: Evaluation,
    rule: MaskRule,
    device: torch.device,
    world: World,
    skips_bad: bool = False,
) -> dict[str, float]:
    """Run the held-out documents through `forward`, each counted once, whatever the number of ranks.

    Args:
        forward: what `MaskedLM.forward` is; the caller puts the model into evaluation mode.
        rule: what is predicted, `MaskRule.held_out`.
        skips_bad: leave out blocks that are not what was indexed, with a warning.

    Returns:
        `evaluation_loss` (nats a predicted token), `evaluation_perplexity`, `evaluation_accuracy`, and the number of
        predicted tokens, `evaluation_tokens`; of several corpora also each one's loss, `evaluation_loss_N`.
    """
    seq_len = settings.seq_len
    assert seq_len is not None, "RunConfig.evaluation_filled fills it"
    sums = torch.zeros(len(corpora), 3, dtype=torch.float64, device=device)
    for number, index in enumerate(corpora):
        rows = held_out_rows(index, tokenizer, seq_len, rule, world, skips_bad)
        batches = _equal_batches(rows, settings.micro_batch_rows, rule.most(seq_len), seq_len, tokenizer, device)
        with contextlib.closing(batches):
            for batch in batches:
                with torch.no_grad():
                    loss, hits = forward(batch)
                sums[number] += torch.stack([loss.double(), hits.double(), batch.weights.double().sum()])
    table = sum_over_ranks(sums).tolist()
    loss_sum, hit_sum, tokens = (sum(column) for column in zip(*table, strict=True))
    if not tokens:
        return {}
    mean = loss_sum / tokens
    each = {f"evaluation_loss_{number}": row[0] / row[2] for number, row in enumerate(table) if row[2]}
    return {
        "evaluation_loss": mean,
        "evaluation_perplexity": math.exp(min(mean, 700.0)),
        "evaluation_accuracy": hit_sum / tokens,
        "evaluation_tokens": tokens,
        **(each if len(corpora) > 1 else {}),
    }


def unigram_entropy(corpora: Sequence[Index], tokenizer: Tokenizer, rule: MaskRule) -> float:
    """Entropy (nats a token) of the corpora's tokens, by the counts that `token_counts` finds.

    It is the loss of a model that knows how often each token occurs and nothing of its context: what a trained model
    must beat.
    """
    return entropy(token_counts(corpora, tokenizer, rule))


def entropy(counts: NDArray[np.int64]) -> float:
    """Entropy in nats of the shares that counts have of their sum."""
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(shares * np.log(shares)).sum())


def token_counts(
    corpora: Sequence[Index], tokenizer: Tokenizer, rule: MaskRule, most_blocks: int = ENTROPY_BLOCKS
) -> NDArray[np.int64]:
    """How often each token is in the training text, int64 [vocabulary]. At most so many blocks are read, spread over each
    corpus. Tokens that are never predicted count 0."""
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    for index in corpora:
        places = np.unique(np.linspace(0, len(index.train_blocks) - 1, most_blocks).astype(np.int64))
        for block in index.train_blocks[places]:
            ids = index.tokenized(int(block), "train", tokenizer).ids
            counts += np.bincount(ids, minlength=tokenizer.vocab_size)
    counts[~rule.maskable(tokenizer)] = 0
    return counts


def _buckets(parts: Iterator[Rows], size: int) -> Generator[Rows]:
    """The rows of `parts` in groups of `size`, the last one smaller."""
    held: Rows | None = None
    for part in parts:
        held = part if held is None else Rows.concatenate([held, part])
        while len(held) >= size:
            yield held.take(slice(0, size))
            held = held.take(slice(size, None))
    if held is not None and len(held):
        yield held


def _equal_batches(
    rows: Iterator[Rows], size: int, capacity: int, seq_len: int, tokenizer: Tokenizer, device: torch.device
) -> Generator[MicroBatch]:
    """This rank's micro-batches, filled up to as many as any rank has, or the collectives of ZeRO-3 would not meet.

    A thread makes the next ones ready. Ranks agree on how many there are once for all that are held, the only wait for a GPU.
    """

    def ready(part: Rows) -> MicroBatch:
        return make_micro_batch(part, size, capacity, tokenizer).pinned_for(device)

    with contextlib.closing(ahead(lambda _: _buckets(rows, size), ready, device, BATCHES_HELD)) as mine:
        while True:
            held = list(itertools.islice(mine, BATCHES_HELD))
            count = int(max_over_ranks(to_device(torch.tensor([len(held)]), device)))
            if not count:
                return
            for number in range(count):
                yield (held[number] if number < len(held) else ready(Rows.none(seq_len))).to(device)
