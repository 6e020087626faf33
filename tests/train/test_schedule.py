"""The learning rate: two straight lines that meet at the highest rate."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.train.schedule import learning_rate


@st.composite
def runs(draw: st.DrawFn) -> tuple[float, int, int]:
    """(highest rate, warm-up steps, total steps) of a run that the configuration admits."""
    total = draw(st.integers(1, 10_000))
    return draw(st.floats(1e-6, 1.0)), draw(st.integers(0, total - 1)), total


@given(runs())
def test_rates_are_positive_and_highest_at_the_end_of_the_warm_up(run: tuple[float, int, int]) -> None:
    highest, warmup, total = run
    for step in {1, max(warmup, 1), warmup + 1, total}:
        assert 0 < learning_rate(step, highest, warmup, total) <= highest * (1 + 1e-12)  # rounding
    if warmup:
        assert learning_rate(warmup, highest, warmup, total) == pytest.approx(highest)


@given(runs(), st.data())
def test_both_parts_are_straight(run: tuple[float, int, int], data: st.DataObject) -> None:
    highest, warmup, total = run
    step = data.draw(st.integers(1, total))
    rate = learning_rate(step, highest, warmup, total)
    if step <= warmup:
        assert rate == pytest.approx(highest * step / warmup)  # a line through 0 at step 0
    else:
        # A line that would be 0 one step after the last: no step is without effect.
        assert rate == pytest.approx(learning_rate(total, highest, warmup, total) * (total + 1 - step))
        assert learning_rate(total + 1, highest, warmup, total) == 0.0


def test_by_hand() -> None:
    assert [learning_rate(step, 1.0, 2, 5) for step in range(1, 6)] == pytest.approx([1 / 2, 1, 3 / 4, 2 / 4, 1 / 4])
