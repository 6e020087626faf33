"""Whether blocks of uneven size skew what a run reads.

A lane reads one block after the other, and all its rows come from its open block. All lanes advance evenly. The first blocks
are drawn by their number, not by their size. So at first a block gives 1/B of the rows, however large it is. Only over time
does it give its share of the text: a lane is a renewal process. Block j holds r_j tokens, p_j of the text. Over R tokens of a
lane, its expected share is off by

    p_j (r - r_j) / (2 R),    r = sum of p_k r_k, the size of the block in which the average token lies

Half of the sum of absolute values over j is the share of the run's rows that come from the wrong blocks. It is 0 if all blocks
have one size. It is largest at the first row: half the sum of |p_j - 1/B|. Simulations of the real order agree within a factor
of two (`tests/data/test_skew.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from maskloom.data.index.corpus import Index
from maskloom.data.order import MOST_DEFAULT_LANES
from maskloom.data.plan import DataPlan
from maskloom.redaction import shown

TOLERATED = 0.1  # share of the rows; the estimate is right within a factor of two
TEXT_BYTES_A_TOKEN = 4  # an estimate, since an index does not say how many tokens a text has
CHUNK = 1 << 20
WHAT_TO_DO = "Split long documents (`maskloom shards --max-document-bytes`), or use a smaller --block-bytes"


class Sizes(NamedTuple):
    """The sizes of the blocks that a corpus trains on.

    Attributes:
        blocks: how many.
        text_bytes: of all, held-out documents aside.
        largest: number of the largest block in the index, and `largest_share` its share of the text.
        at_first: share of the first rows that come from the wrong blocks: not by their share of the text.
        spread: sum of p |p - sum of p^2| over the blocks' shares p; 0 if all are even.
    """

    blocks: int
    text_bytes: float
    largest: int
    largest_share: float
    at_first: float
    spread: float

    def misplaced(self, lane_bytes: float) -> float:
        """The share of the rows that come from the wrong blocks, over the first `lane_bytes` of text of each lane."""
        return min(self.at_first, self.spread * self.text_bytes / (4 * max(lane_bytes, 1)))

    def most_lanes(self, read_bytes: float) -> float:
        """How many lanes there may be for at most TOLERATED to be misplaced, if all together read `read_bytes` of text."""
        spread_bytes = self.spread * self.text_bytes
        return 4 * TOLERATED * read_bytes / spread_bytes if self.at_first > TOLERATED and spread_bytes else np.inf


def sizes_of(index: Index) -> Sizes:
    """The sizes of the blocks that have documents for training, by their bytes in the shards."""
    blocks, total, squares, largest, place = len(index.train_blocks), 0.0, 0.0, 0.0, 0
    for start, sizes in _chunks(index):
        total, squares = total + float(sizes.sum()), squares + float((sizes**2).sum())
        if sizes.max() > largest:
            largest, place = float(sizes.max()), start + int(sizes.argmax())
    at_first = spread = 0.0
    for _, sizes in _chunks(index):
        shares = sizes / total
        at_first += np.abs(shares - 1 / blocks).sum() / 2
        spread += (shares * np.abs(shares - squares / total**2)).sum()
    header = index.header
    held_out = header["held_out_documents"] / (header["documents"] + header["held_out_documents"])
    text_bytes = header["text_bytes"] * (1 - held_out)
    return Sizes(blocks, text_bytes, int(index.train_blocks[place]), largest / total, float(at_first), float(spread))


def note_on_sizes(index: Index) -> str | None:
    """A note on a corpus that was just indexed, if too many lanes would skew its rows in one epoch. None: there is no need."""
    sizes = sizes_of(index)
    most = sizes.most_lanes(sizes.text_bytes)  # one epoch
    if most >= min(MOST_DEFAULT_LANES, sizes.blocks):
        return None
    return (
        f"the sizes of the blocks are very uneven: {_largest(index, sizes)}. In a run of about one epoch with more than "
        f"{max(int(most), 1)} lane(s) (data.lanes), large blocks give fewer rows than their share of the text, and small ones "
        f"more. {WHAT_TO_DO}"
    )


def notes_on_run(plan: DataPlan) -> Iterator[str]:
    """A note at the start of a run on each corpus whose rows will be skewed."""
    for number, index in enumerate(plan.corpora):
        sizes = sizes_of(index)
        read_bytes = (
            TEXT_BYTES_A_TOKEN
            * plan.lanes
            * sum(
                phase.rows_before(phase.steps) * phase.seq_len * phase.weights[number] / sum(phase.weights)
                for phase in plan.phases
            )
        )
        misplaced = sizes.misplaced(read_bytes / plan.lanes)
        if misplaced > TOLERATED:
            most = int(sizes.most_lanes(read_bytes))
            or_else = f"set data.lanes to at most {most} for a new run" if most else "train for more steps"
            yield (
                f"{shown(index.folder)}: the sizes of the blocks are very uneven: {_largest(index, sizes)}. A lane reads one "
                f"block at a time. With {plan.lanes} lanes, about {misplaced:.0%} of this run's rows of this corpus come from "
                f"the wrong blocks: too few from large ones. {WHAT_TO_DO}, or {or_else}"
            )


def _chunks(index: Index) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """(place in the list of blocks, bytes of text for training of each block), a part of the list at a time."""
    columns = index.columns
    for start in range(0, len(index.train_blocks), CHUNK):
        blocks = index.train_blocks[start : start + CHUNK]
        documents = columns["documents"][blocks].astype(np.float64)
        yield start, columns["length"][blocks] * (documents / (documents + columns["held_out"][blocks]))


def _largest(index: Index, sizes: Sizes) -> str:
    shard, _, offset = index.place(sizes.largest)
    share = f"{sizes.largest_share:.0%} of the text"
    return f"the largest of {sizes.blocks:,}, at offset {offset} of {shown(shard.url)}, holds {share}"
