"""Curves as text, for a terminal. Each curve has a mark of its own; if two meet, the first is seen."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

Curve = Sequence[tuple[int, float]]
"""Steps and values, by step."""


class Style(NamedTuple):
    """The characters that a chart is drawn with."""

    marks: str
    tick: str
    side: str
    corner: str
    line: str


UNICODE = Style("●○▲△■□◆◇", "┤", "│", "└", "─")
ASCII = Style("*o+x#@%&", "+", "|", "+", "-")
LEAST_COLUMNS = 20


def style_for(encoding: str | None) -> Style:
    """UNICODE if an output of this encoding can show it, else ASCII."""
    try:
        "".join(UNICODE).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return UNICODE


def chart(curves: Sequence[Curve], width: int, rows: int = 12, style: Style = UNICODE) -> list[str]:
    """The lines of a chart. Between two points a curve is straight.

    A loss falls fast at first. So the first tenth does not set the scale: what is higher there is drawn at the top.

    Args:
        curves: at least one has a point. Marks repeat from the ninth on.
        width: of the whole in characters.
        rows: of the curves, at least 2.
    """
    steps = [step for curve in curves for step, _ in curve]
    margin = max(len(f"{value:.3f}") for curve in curves for _, value in curve)
    columns = max(width - margin - 2, LEAST_COLUMNS)
    drawn = [_columns(curve, min(steps), max(steps), columns) for curve in curves]
    values = [value for each in drawn for value in each.values()]
    later = [value for each in drawn for column, value in each.items() if column >= columns // 10]
    low, high = min(values), max(later or values)
    grid = [[" "] * columns for _ in range(rows)]
    for number, each in reversed(list(enumerate(drawn))):
        for column, value in each.items():
            row = round((high - value) / (high - low) * (rows - 1)) if high > low else rows // 2
            grid[max(row, 0)][column] = style.marks[number % len(style.marks)]
    lines = []
    for row, cells in enumerate(grid):
        is_labelled = row % 3 == 0 or row == rows - 1
        label = f"{high - (high - low) * row / (rows - 1):.3f}" if is_labelled else ""
        lines.append(f"{label:>{margin}} {style.tick if is_labelled else style.side}{''.join(cells)}".rstrip())
    lines.append(f"{'':>{margin}} {style.corner}{style.line * columns}")
    lines.append(f"{'':>{margin + 2}}{_axis(min(steps), max(steps), columns)}")
    return lines


def _columns(curve: Curve, first: int, last: int, columns: int) -> dict[int, float]:
    """Column -> value, for all columns that a curve covers."""

    def column_of(step: int) -> int:
        return round((step - first) / (last - first) * (columns - 1)) if last > first else 0

    found: dict[int, float] = {}
    for (step, value), (later, later_value) in itertools.pairwise(curve):
        begin, end = column_of(step), column_of(later)
        for column in range(begin, end):
            found.setdefault(column, value + (later_value - value) * (column - begin) / (end - begin))
    for step, value in curve[-1:]:
        found[column_of(step)] = value
    return found


def _axis(first: int, last: int, columns: int) -> str:
    """The first step, the one in the middle if there is room, and the last."""
    begin, middle, end = f"{first:,}", f"{(first + last) // 2:,}", f"{last:,}"
    if first == last:
        return begin
    if len(begin) + len(middle) + len(end) + 6 > columns or last - first < 2:
        return begin + end.rjust(columns - len(begin))
    centred = begin + middle.rjust(columns // 2 + len(middle) // 2 - len(begin))
    return centred + end.rjust(columns - len(centred))
