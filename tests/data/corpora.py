"""What the tests of reading share: corpora of a few blocks, plans over them, and ways to damage a block."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import webdataset

from maskloom.config import Masking
from maskloom.data.cursors import LaneCursors
from maskloom.data.index.corpus import Index
from maskloom.data.index.indexing import index_shard, write_index
from maskloom.data.lane import Skip
from maskloom.data.masking import MaskRule
from maskloom.data.order import block_at
from maskloom.data.plan import DataPlan, PhasePlan
from maskloom.data.rows import Rows
from maskloom.data.stream import read_steps
from maskloom.distributed import World
from maskloom.tokenizers.base import Tokenizer


def corpus_of(folder: Path, documents: Sequence[str], shards: int = 1) -> Index:
    """A corpus with every document in a block of its own, in shards of as many blocks each."""
    folder.mkdir(parents=True, exist_ok=True)
    each = -(-len(documents) // shards)
    indexed = []
    for number, first in enumerate(range(0, len(documents), each)):
        path = folder / f"{number}.tar"
        with webdataset.TarWriter(str(path), mtime=0) as tar:
            for place, text in enumerate(documents[first : first + each]):
                tar.write({"__key__": f"{place:04d}", "txt": text})
        indexed.append(index_shard(path, 1, "text", "train"))
    return write_index(folder, indexed, text_key="text", block_bytes=1, threshold=0)


def plan_of(
    corpora: Sequence[Index],
    tokenizer: Tokenizer,
    phases: Sequence[PhasePlan],
    lanes: int,
    *,
    seed: int = 5,
    masking: Masking | None = None,
    skips_bad: bool = False,
) -> DataPlan:
    masking = masking or Masking()
    rule = MaskRule.of(masking, tokenizer)
    return DataPlan(tuple(corpora), tokenizer, seed, lanes, tuple(phases), masking, rule, skips_bad)


def digest_of(rows: Rows) -> str:
    digest = hashlib.sha256()
    rows.update(digest)
    return digest.hexdigest()


@dataclass(frozen=True)
class GlobalStep:
    """What all ranks read together for a step: its digest, where all lanes stand after it, what was skipped."""

    digest: str
    cursors: list[LaneCursors]
    skips: frozenset[Skip]


def global_steps(
    plan: DataPlan,
    size: int,
    cursors: Sequence[LaneCursors],
    first: int = 0,
    last: int | None = None,
    workers: int = 0,
) -> Iterator[GlobalStep]:
    """Every step that `size` ranks read together, each with as many reader processes."""
    ranks = [read_steps(plan, World(rank, size), cursors, first, last, workers) for rank in range(size)]
    for number, parts in enumerate(zip(*ranks, strict=True), start=first):
        assert {part.number for part in parts} == {number}
        after = {lane: cursors for part in parts for lane, cursors in part.cursors.items()}
        skips = [skip for part in parts for skip in part.skips]
        assert len(set(skips)) == len(skips), "an occurrence was reported twice"
        rows = Rows.concatenate([part.rows for part in parts])
        yield GlobalStep(digest_of(rows), [after[lane] for lane in range(plan.lanes)], frozenset(skips))


def text_tokens(rows: Rows, tokenizer: Tokenizer) -> Counter[int]:
    """How often each token of the text stands in the rows."""
    tokens = rows.tokens.reshape(-1)
    added = np.isin(tokens, [tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id])
    return Counter(tokens[~added].tolist())


def tokens_of(documents: Sequence[str], tokenizer: Tokenizer) -> Counter[int]:
    return Counter(tokenizer.encode(documents).ids.tolist())


def block_of(plan: DataPlan, corpus: int, number: int) -> int:
    """The block that is number q of a corpus."""
    index = plan.corpora[corpus]
    _, place = block_at(plan.seed, index.digest, number, len(index.train_blocks))
    return int(index.train_blocks[place])


def flip(index: Index, block: int) -> None:
    """Change one bit in the text of a block."""
    shard, _, offset = index.place(block)
    path = Path(index.url(shard))
    data = bytearray(path.read_bytes())
    data[offset + 512] ^= 1  # behind the member's header
    path.write_bytes(data)
