"""Draw the pictures of docs/how-it-works.md as SVG.

    python tools/diagrams.py            writes docs/images/{order,lanes,packing,masks,loss,checkpoint}.svg

Orders and rows come from maskloom's own functions. Each picture has a white panel behind it, so it can be read on a dark page.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from maskloom.data.order import block_at
from maskloom.data.packing import best_fit_decreasing

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
WIDTH = 860
INK, SOFT, LINE, EMPTY = "#1f2937", "#6b7280", "#9ca3af", "#f3f4f6"
COLOURS = ("#bfdbfe", "#fde68a", "#bbf7d0", "#fecaca", "#ddd6fe", "#fed7aa")
"""Light fills that are told apart in black and white too, by what is written on them."""
FONT = "font-family=\"Inter, 'Segoe UI', Helvetica, Arial, sans-serif\""

Point = tuple[float, float]


class Picture:
    """An SVG of `WIDTH` by `height`, filled shape by shape. Coordinates are its units, from the top left."""

    def __init__(self, title: str, height: int) -> None:
        self.height = height
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" {FONT}>',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0,0 L8,4 L0,8 Z" fill="{SOFT}"/></marker></defs>',
            f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>',
        ]

    def box(self, at: Point, size: Point, fill: str = "#ffffff", says: str = "", points: float = 13) -> None:
        """A rectangle with its words in the middle."""
        (x, y), (width, height) = at, size
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3" fill="{fill}" stroke="{LINE}"/>'
        )
        if says:
            self.text((x + width / 2, y + height / 2 + points * 0.36), says, points, "middle")

    def text(
        self, at: Point, says: str, points: float = 13, anchor: str = "start", colour: str = INK, bold: bool = False
    ) -> None:
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{at[0]:g}" y="{at[1]:g}" font-size="{points:g}" text-anchor="{anchor}" fill="{colour}"{weight}>'
            f"{escape(says)}</text>"
        )

    def notes(self, y: float, *lines: str) -> None:
        """Sentences below the drawing, one a line."""
        for number, line in enumerate(lines):
            self.text((24, y + 20 * number), line)

    def arrow(self, start: Point, end: Point, dashed: bool = False) -> None:
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self.parts.append(
            f'<path d="M{start[0]:g},{start[1]:g} L{end[0]:g},{end[1]:g}" stroke="{SOFT}" stroke-width="1.4" fill="none"'
            f' marker-end="url(#head)"{dash}/>'
        )

    @property
    def svg(self) -> str:
        return "\n".join([*self.parts, "</svg>", ""])


BLOCKS, LANES = 12, 4


def block_numbers(epoch: int) -> list[int]:
    """The blocks of a small corpus in the order of an epoch."""
    return [block_at(0, "a corpus", epoch * BLOCKS + place, BLOCKS)[1] for place in range(BLOCKS)]


def order() -> Picture:
    picture = Picture("Blocks on the disk, and their order in two epochs", 300)
    left, side, gap = 210, 44, 6

    def row(y: float, numbers: Sequence[int], name: str, note: str) -> None:
        picture.text((24, y + 20), name, 14, bold=True)
        picture.text((24, y + 38), note, 12, colour=SOFT)
        for place, number in enumerate(numbers):
            at = (left + place * (side + gap), y)
            picture.box(at, (side, side), COLOURS[number // 3], str(number), 15)

    for shard in range(4):
        picture.text((left + (shard * 3 + 1.5) * (side + gap) - gap / 2, 26), f"shard {shard}.tar", 12, "middle", SOFT)
    row(36, range(BLOCKS), "on the disk", "blocks of about 128 KiB")
    picture.arrow((left + 22, 86), (left + 22, 126))
    picture.text((left + 36, 111), "a permutation that is computed from (seed, corpus, epoch)", 12, colour=SOFT)
    row(132, block_numbers(0), "epoch 0", "every block once")
    row(200, block_numbers(1), "epoch 1", "in another order")
    picture.notes(274, "Nothing is sorted or stored. Any process finds the block at any place in microseconds.")
    return picture


def lanes() -> Picture:
    picture = Picture("Lanes share the blocks, and ranks share the lanes", 400)
    side, gap, left = 44, 6, 24
    picture.text((left, 28), "the order of the blocks, dealt out like cards to 4 lanes", 14, bold=True)
    for place, number in enumerate(block_numbers(0)):
        picture.box((left + place * (side + gap), 40), (side, side), COLOURS[place % LANES], str(number), 15)
    picture.text((left + BLOCKS * (side + gap) + 6, 68), "then epoch 1, ...", 13, colour=SOFT)
    top, height = 140, 52
    for lane in range(LANES):
        y = top + lane * height
        picture.text((left, y + 24), f"lane {lane}", 14, bold=True)
        for turn, number in enumerate(block_numbers(0)[lane::LANES]):
            picture.box((90 + turn * (side + gap), y), (side, 36), COLOURS[lane], str(number), 15)
        picture.arrow((90 + 3 * (side + gap), y + 18), (284, y + 18))
        picture.box((290, y), (120, 36), COLOURS[lane], "its next rows")
    picture.text((350, top - 14), "one step takes", 13, "middle", SOFT)
    for column, (x, ranks) in enumerate(((480, 1), (610, 2), (740, 4))):
        picture.text((x + 50, top - 14), f"{ranks} rank{'s' if ranks > 1 else ''}", 13, "middle", SOFT)
        for rank in range(ranks):
            share = LANES // ranks
            y = top + rank * share * height
            picture.box((x, y), (100, share * height - 16), EMPTY, f"rank {rank}", 14)
        if column == 0:
            picture.arrow((414, top + 1.5 * height + 18), (474, top + 1.5 * height + 18))
    picture.notes(370, "A step takes as many rows from each lane. The ranks change who reads a lane, and nothing else.")
    return picture


SLOTS = 16
DOCUMENTS = (11, 5, 20, 3, 7, 9, 4)
"""Tokens of some documents, the first and last token of a piece left out."""


def pieces_of(documents: Sequence[int]) -> list[tuple[str, int]]:
    """(name, slots) of the pieces, each with its [CLS] and [SEP], longest first."""
    found = []
    for number, tokens in enumerate(documents):
        name, part = "ABCDEFG"[number], 1
        while tokens > 0:
            taken = min(tokens, SLOTS - 2)
            found.append((name if tokens == documents[number] and taken == tokens else f"{name}{part}", taken + 2))
            tokens, part = tokens - taken, part + 1
    return sorted(found, key=lambda piece: -piece[1])


def packing() -> Picture:
    pieces = pieces_of(DOCUMENTS)
    bins = best_fit_decreasing(np.array([slots for _, slots in pieces], dtype=np.int64), SLOTS)
    rows = max(bins) + 1
    picture = Picture("Documents become pieces, and pieces fill rows", 190 + 44 * max(rows, 5))
    unit, left = 27, 24

    def colour(name: str) -> str:
        return COLOURS["ABCDEFG".index(name[0]) % len(COLOURS)]

    picture.text((left, 28), "documents of one block, in tokens", 14, bold=True)
    x: float = left
    for name, tokens in zip("ABCDEFG", DOCUMENTS, strict=True):
        picture.box((x, 40), (tokens * 12.5, 30), colour(name), f"{name}: {tokens}", 12)
        x += tokens * 12.5 + 8
    picture.text((left, 104), f"rows of {SLOTS} slots: each piece has its [CLS] and [SEP]", 14, bold=True)
    for row in range(rows):
        at, y = 0, 118 + row * 44
        for (name, slots), where in zip(pieces, bins, strict=True):
            if where != row:
                continue
            picture.box((left + at * unit, y), (slots * unit, 34), colour(name), f"{name} ({slots})")
            at += slots
        if at < SLOTS:
            picture.box((left + at * unit, y), ((SLOTS - at) * unit, 34), EMPTY, "empty" if SLOTS - at > 1 else "", 11)
    chosen = next(row for row in range(rows) if sum(where == row for where in bins) > 1)
    _attention(picture, [slots for (_, slots), where in zip(pieces, bins, strict=True) if where == chosen], (560, 118))
    picture.text((560, 104), f"attention in row {chosen + 1}", 14, bold=True)
    picture.notes(
        118 + rows * 44 + 24,
        "A document that is too long is cut (C). The longest pieces are placed first, each where it fits best.",
        "No slot sees another piece, and positions begin anew in each.",
    )
    return picture


def _attention(picture: Picture, pieces: Sequence[int], at: Point) -> None:
    """Which slots see each other: a square for each piece."""
    unit, begin = 12.5, 0
    picture.box(at, (SLOTS * unit, SLOTS * unit), EMPTY)
    for slots in pieces:
        corner = (at[0] + begin * unit, at[1] + begin * unit)
        picture.box(corner, (slots * unit, slots * unit), COLOURS[0])
        begin += slots


SENTENCE = ("the", "river", "rose", "after", "three", "days", "of", "rain", "in", "the", "hills", ".")


def masks() -> Picture:
    picture = Picture("Which tokens are predicted, and what the model sees", 330)
    left, width, gap = 110, 56, 4
    fills = {"none": "#ffffff", "[MASK]": COLOURS[1], "random": COLOURS[3], "stays": COLOURS[2]}
    seen = [
        {1: "[MASK]", 7: "[MASK]"},
        {4: "[MASK]", 10: "lamp"},
        {2: "[MASK]", 5: "days"},
    ]

    def row(y: float, words: Sequence[str], chosen: dict[int, str], name: str) -> None:
        picture.text((24, y + 21), name, 14, bold=True)
        for place, word in enumerate(words):
            shown = chosen.get(place, word)
            kind = (
                "none"
                if place not in chosen
                else "[MASK]"
                if shown == "[MASK]"
                else "stays"
                if shown == word
                else "random"
            )
            picture.box((left + place * (width + gap), y), (width, 32), fills[kind], shown, 13)

    row(24, SENTENCE, {}, "the text")
    picture.text((left + 42, 83), "a hash of (seed, corpus, epoch, block, row, slot) decides", 12, colour=SOFT)
    picture.arrow((left + 28, 62), (left + 28, 94))
    for epoch, chosen in enumerate(seen):
        row(100 + epoch * 44, SENTENCE, chosen, f"epoch {epoch}")
    legend = {"[MASK]": "80 %: the mask", "random": "10 %: a random token", "stays": "10 %: stays as it is"}
    for number, (kind, says) in enumerate(legend.items()):
        picture.box((left + number * 190, 246), (20, 20), fills[kind])
        picture.text((left + number * 190 + 28, 261), says, 13)
    picture.notes(
        306, "All coloured tokens are predicted. Every epoch has its own masks; every restart has the same ones."
    )
    return picture


def loss() -> Picture:
    picture = Picture("From micro-batches to one loss of the global batch", 330)
    sums = ((("820.4", 152), ("798.1", 150)), (("805.7", 149), ("411.9", 77)))
    for rank, batches in enumerate(sums):
        y = 40 + rank * 112
        picture.text((24, y + 36), f"rank {rank}", 14, bold=True)
        for number, (total, predicted) in enumerate(batches):
            x = 90 + number * 235
            picture.box((x, y), (88, 60), COLOURS[0], "micro-batch", 12)
            picture.arrow((x + 90, y + 30), (x + 112, y + 30))
            picture.box((x + 116, y), (104, 60), COLOURS[1])
            picture.text((x + 168, y + 25), f"sum {total}", 12.5, "middle")
            picture.text((x + 168, y + 44), f"{predicted} predicted", 12.5, "middle")
        picture.arrow((560, y + 30), (604, 126))
    picture.box((610, 84), (226, 84), COLOURS[2])
    whole = sum(float(total) for batches in sums for total, _ in batches)
    count = sum(predicted for batches in sums for _, predicted in batches)
    picture.text((723, 112), f"{whole:,.1f} nats / {count} tokens", 13, "middle")
    picture.text((723, 134), f"= {whole / count:.2f} nats a token", 14, "middle", bold=True)
    picture.text((723, 156), "loss of the global batch", 12, "middle", SOFT)
    picture.notes(
        268,
        "The head runs on predicted tokens alone. Each counts the same, in whichever micro-batch it is:",
        "the mean of the four means would be another number. So the loss, and the gradient, are those of",
        "one big batch at any number of ranks and micro-batches.",
    )
    return picture


def checkpoint() -> Picture:
    picture = Picture("How a checkpoint is written while training continues", 370)
    left, unit = 150, 64
    picture.text((24, 62), "training", 14, bold=True)
    for step in range(10):
        at = (left + (step + (step > 2) * 0.6) * unit, 40)
        picture.box(at, (unit - 6, 34), COLOURS[0], f"step {498 + step}", 11.5)
    picture.box((left + 3 * unit, 40), (0.6 * unit - 6, 34), COLOURS[3], "copy", 11)
    picture.text((left + 3.3 * unit - 3, 30), "to memory", 11, "middle", SOFT)
    picture.text((24, 144), "a thread", 14, bold=True)
    picture.text((24, 160), "of each rank", 12, colour=SOFT)
    picture.arrow((left + 3.3 * unit - 3, 76), (left + 3.6 * unit + 20, 118))
    start = left + 3.6 * unit
    for x, width, says in ((0, 110, "write, flush"), (118, 126, "read back, SHA-256")):
        picture.box((start + x, 122), (width, 34), COLOURS[1], says, 12)
    picture.arrow((start + 246, 139), (start + 274, 96))
    picture.text((start + 264, 128), "done: said in a step's all-reduce", 11.5, colour=SOFT)
    picture.text((24, 222), "rank 0", 14, bold=True)
    picture.arrow((start + 300, 140), (start + 300, 196))
    picture.box((start + 156, 202), (266, 34), COLOURS[2], "manifest, then rename to step-00000500", 12)
    picture.text((24, 262), "in the folder", 14, bold=True)
    says = ".partial-step-00000500 while it is written, then step-00000500: a folder with this name is whole"
    picture.text((left, 262), says, 12.5, colour=SOFT)
    picture.notes(
        302,
        "Killed at any moment, a run finds a whole checkpoint: the old one or the new one.",
        "Weights, moments, step, and each lane's cursor: a resume continues with the next row, at any number of ranks.",
        "A damaged file is found by its digest, and the checkpoint before it is taken.",
    )
    return picture


PICTURES: tuple[Callable[[], Picture], ...] = (order, lanes, packing, masks, loss, checkpoint)


def main() -> int:
    IMAGES.mkdir(parents=True, exist_ok=True)
    for draw in PICTURES:
        (IMAGES / f"{draw.__name__}.svg").write_text(draw().svg)
    return 0


if __name__ == "__main__":
    sys.exit(main())
