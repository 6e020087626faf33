"""Curves as text."""

from __future__ import annotations

import pytest

from maskloom.viewing.chart import ASCII, LEAST_COLUMNS, UNICODE, chart, style_for

FALLING = [(0, 9.0), (4, 4.0), (10, 3.0), (40, 1.0)]
"""Fast in its first tenth."""
FLAT = [(0, 2.5), (40, 2.5)]


def test_a_curve_falls_and_its_first_tenth_does_not_set_the_scale() -> None:
    lines = chart([FALLING], 60, rows=7)
    plotted = [line.partition("┤")[2] or line.partition("│")[2] for line in lines[:7]]
    assert plotted[0].startswith("●") and plotted[-1].endswith("●")
    seen = [next(row for row, cells in enumerate(plotted) if cells[at : at + 1] == "●") for at in range(53)]
    assert seen == sorted(seen)
    assert seen[:5] == [0] * 5, "above the scale"
    assert seen[13] == 2, "3.0, a third of the way down, is reached at a quarter of the steps"
    assert lines[0].startswith("4.000 ┤") and lines[6].startswith("1.000 ┤")
    assert lines[-1].split() == ["0", "20", "40"]


@pytest.mark.parametrize("width", [10, 40, 79, 120])
def test_it_is_as_wide_as_asked(width: int) -> None:
    for curves in ([FALLING], [FALLING, FLAT], [[(1_000_000, 2.0)]]):
        assert max(map(len, chart(curves, width))) == max(width, LEAST_COLUMNS + 7)


def test_curves_have_marks_of_their_own_and_the_first_is_in_front() -> None:
    assert "●" in "".join(chart([FALLING, FLAT], 60)) and "○" in "".join(chart([FALLING, FLAT], 60))
    assert "○" not in "".join(chart([FLAT, FLAT], 60))
    nine = "".join(chart([[(step, float(step)), (step + 1, float(step))] for step in range(9)], 60))
    assert all(mark in nine for mark in UNICODE.marks)


@pytest.mark.parametrize("curve", [FLAT, [(3, 1.5)], []])
def test_a_curve_may_be_flat_or_a_point_or_nothing(curve: list[tuple[int, float]]) -> None:
    assert "○" in "".join(chart([curve, FALLING], 50))
    assert ("●" in "".join(chart([curve, FALLING], 50))) == bool(curve)


def test_an_output_without_unicode_gets_ascii() -> None:
    assert style_for("utf-8") == UNICODE
    assert all(style_for(encoding) == ASCII for encoding in ("ascii", "latin-1", "no-such", None))
    "".join(chart([FALLING, FLAT], 50, style=ASCII)).encode("ascii")
