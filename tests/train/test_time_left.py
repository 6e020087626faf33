"""The time left, with a clock of ours: what people read is what the steps took."""

from __future__ import annotations

import pytest

from maskloom.data.plan import Growth, PhasePlan
from maskloom.train import time_left
from maskloom.train.time_left import TimeLeft


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def perf_counter(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time_left, "time", clock)
    return clock


def run(left: TimeLeft, clock: Clock, steps: range, seconds: float) -> None:
    for step in steps:
        clock.now_s += seconds
        left.stepped(step)


ONE = (PhasePlan(steps=100, seq_len=32, lane_rows=1),)


def test_nothing_is_known_before_the_second_step(clock: Clock) -> None:
    left = TimeLeft(ONE, lanes=4)
    assert left.seconds(0) is None
    run(left, clock, range(1, 2), 60.0)
    assert left.seconds(1) is None
    run(left, clock, range(2, 3), 3.0)
    assert left.seconds(2) == pytest.approx(98 * 3.0)


@pytest.mark.parametrize("start_s", [0.0, 5.0, 3600.0])
def test_neither_the_start_nor_the_first_step_counts(clock: Clock, start_s: float) -> None:
    """A resume at step 60: the checkpoint is loaded, the first step compiles, and 20 more take 2 s each."""
    left = TimeLeft(ONE, lanes=4)
    clock.now_s += start_s
    run(left, clock, range(61, 62), 300.0)
    run(left, clock, range(62, 82), 2.0)
    assert left.seconds(81) == pytest.approx(19 * 2.0)


def test_at_the_end_nothing_is_left(clock: Clock) -> None:
    left = TimeLeft(ONE, lanes=4)
    assert left.seconds(100) == 0.0
    run(left, clock, range(99, 101), 2.0)
    assert left.seconds(100) == 0.0


def test_a_roll_back_does_not_count(clock: Clock) -> None:
    left = TimeLeft(ONE, lanes=4)
    run(left, clock, range(1, 51), 2.0)
    clock.now_s += 500.0
    left.begin()
    run(left, clock, range(41, 42), 90.0)  # compiles again
    assert left.seconds(41) == pytest.approx(59 * 2.0)
    run(left, clock, range(42, 51), 2.0)
    assert left.seconds(50) == pytest.approx(50 * 2.0)


def test_evaluations_are_added_as_they_came(clock: Clock) -> None:
    """Every tenth step 30 s of evaluation: 3 s a step."""
    left = TimeLeft(ONE, lanes=4)
    for step in range(1, 21):
        run(left, clock, range(step, step + 1), 2.0)
        pause_s = 0.0 if step % 10 else 30.0
        clock.now_s += pause_s
        left.paused(pause_s)
    assert left.seconds(20) == pytest.approx(80 * (2.0 + 3.0))


def test_phases_to_come_are_weighed_by_their_slots(clock: Clock) -> None:
    """Phase 1 has half the rows of phase 0, four times as long: twice the slots."""
    phases = (PhasePlan(steps=10, seq_len=32, lane_rows=2), PhasePlan(steps=20, seq_len=128, lane_rows=1))
    left = TimeLeft(phases, lanes=4)
    run(left, clock, range(1, 5), 3.0)
    assert left.seconds(4) == pytest.approx(6 * 3.0 + 20 * 6.0)


def test_a_phase_that_was_measured_counts_for_itself(clock: Clock) -> None:
    """The second phase turns out four times as slow, and not twice; its first step compiles."""
    phases = (PhasePlan(steps=10, seq_len=32, lane_rows=2), PhasePlan(steps=20, seq_len=128, lane_rows=1))
    left = TimeLeft(phases, lanes=4)
    run(left, clock, range(1, 11), 3.0)
    run(left, clock, range(11, 12), 100.0)
    assert left.seconds(11) == pytest.approx(19 * 6.0)
    run(left, clock, range(12, 16), 12.0)
    assert left.seconds(15) == pytest.approx(15 * 12.0)
    left.begin()  # back into the first phase, whose own rate is known
    assert left.seconds(5) == pytest.approx(5 * 3.0 + 20 * 12.0)


def test_a_batch_that_grows_takes_longer_later(clock: Clock) -> None:
    """Rows a lane of steps 1 to 10: 1, 1, 2, 2, 3, 3 and then 4 four times (first + done * 3 // 6)."""
    phase = PhasePlan(steps=10, seq_len=32, lane_rows=4, growth=Growth(1, 6))
    rows = [phase.rows_at(done) for done in range(10)]
    assert rows == [1, 1, 2, 2, 3, 3, 4, 4, 4, 4]
    left = TimeLeft((phase,), lanes=4)
    for step in range(1, 5):
        run(left, clock, range(step, step + 1), 0.5 * rows[step - 1])
    assert left.seconds(4) == pytest.approx(0.5 * sum(rows[4:]))
