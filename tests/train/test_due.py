"""What is due after a step."""

from __future__ import annotations

import pytest

from maskloom.train.due import is_due


@pytest.mark.parametrize(
    ("every_steps", "due"),
    [
        (3, [3, 6, 9, 10]),
        (5, [5, 10]),
        (20, [10]),
        (0, [10]),
    ],
)
def test_every_so_many_steps_and_after_the_last(every_steps: int, due: list[int]) -> None:
    assert [step for step in range(1, 11) if is_due(step, every_steps, last=10)] == due
