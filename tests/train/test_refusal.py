"""The decision whether a step is taken; which intervals of the data a run skipped, and where its lanes jump."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.config import Guard
from maskloom.data.cursors import Cursor
from maskloom.errors import UserError
from maskloom.train.refusal import (
    GuardState,
    PassedOver,
    after_step,
    behind,
    highest_loss,
    jumps,
    known,
    must_roll_back,
    read_intervals,
    why_refused,
    with_one_more,
    write_intervals,
)

SPIKES = Guard(spike_sigma=3.0, window_steps=8)
finite = st.floats(0, 20, allow_nan=False)
anything = st.one_of(finite, st.sampled_from([math.nan, math.inf, 1e6]))
settings = st.builds(Guard, spike_sigma=st.sampled_from([None, 1.0, 6.0]), window_steps=st.integers(8, 12))


AT_START = GuardState()


def run(losses: list[float], guard: Guard, state: GuardState = AT_START, phase: int = 0) -> tuple[GuardState, list]:
    """The state after steps with these losses, and what each was refused for."""
    found = []
    for loss in losses:
        found.append(why_refused(loss, highest_loss(state, guard, phase)))
        state = after_step(state, guard, phase, loss, found[-1] is None)
    return state, found


@given(losses=st.lists(anything, max_size=40), guard=settings)
def test_only_finite_losses_are_taken_and_remembered(losses: list[float], guard: Guard) -> None:
    state, found = run(losses, guard)
    taken = [loss for loss, reason in zip(losses, found, strict=True) if reason is None]
    assert all(math.isfinite(loss) for loss in taken)
    assert state.losses == tuple(taken[-guard.window_steps :])
    assert state.bad_steps == len(losses) - len(taken)
    assert state.in_a_row == next((n for n, reason in enumerate(reversed(found)) if reason is None), len(found))


@given(losses=st.lists(anything, max_size=40), guard=settings, cut=st.integers(0, 40))
def test_a_state_that_went_through_json_decides_the_same(losses: list[float], guard: Guard, cut: int) -> None:
    whole = run(losses, guard)
    state, found = run(losses[:cut], guard)
    state = GuardState.from_json(json.loads(json.dumps(state.to_json())))
    state, more = run(losses[cut:], guard, state)
    assert (state, found + more) == whole


@given(losses=st.lists(st.floats(0, 1e300), max_size=30))
def test_without_sigma_every_finite_loss_is_taken(losses: list[float]) -> None:
    assert set(run(losses, Guard())[1]) <= {None}


@given(losses=st.lists(finite, min_size=8, max_size=8), factor=st.floats(-2, 2))
def test_a_spike_is_what_lies_sigma_deviations_above_the_mean(losses: list[float], factor: float) -> None:
    state, _ = run(losses, Guard(window_steps=8))
    edge = statistics.fmean(losses) + 3.0 * statistics.pstdev(losses)
    assert highest_loss(state, SPIKES, 0) == pytest.approx(edge, abs=1e-9)
    loss = edge + factor
    if abs(factor) > 1e-6:
        assert (why_refused(loss, highest_loss(state, SPIKES, 0)) is not None) == (factor > 0)


def test_no_spike_before_the_window_is_full_and_a_phase_begins_it_anew() -> None:
    state, _ = run([1.0, 2.0] * 3 + [1.0], SPIKES)
    assert why_refused(1e9, highest_loss(state, SPIKES, 0)) is None
    state, _ = run([2.0], SPIKES, state)
    assert "is a spike" in why_refused(9.0, highest_loss(state, SPIKES, 0))
    assert why_refused(9.0, highest_loss(state, SPIKES, 1)) is None, "the next phase"
    state, _ = run([9.0], SPIKES, state, phase=1)
    assert state == GuardState(1, (9.0,), 0, 0)


def test_it_rolls_back_after_so_many_in_a_row() -> None:
    guard = Guard(skips_before_rollback=3)
    state, _ = run([1.0, math.nan, math.nan], guard)
    assert not must_roll_back(state, guard)
    assert not must_roll_back(run([1.0, math.nan, math.nan], guard, state)[0], guard), "one between was taken"
    assert must_roll_back(run([math.inf], guard, state)[0], guard)


def test_a_state_of_another_version_is_refused() -> None:
    with pytest.raises(TypeError):
        GuardState.from_json({"unknown": 1})


def interval(step: int, last: int) -> PassedOver:
    return PassedOver(step, (step + 1, last), 12, 3, "its loss is nan", [[[last, [32, 4]]], [[last + 1, [32, 5]]]])


def test_they_survive_the_file(tmp_path: Path) -> None:
    assert read_intervals(tmp_path) == []
    for intervals in ([interval(4, 8)], [interval(4, 8), interval(12, 15)]):
        write_intervals(tmp_path, intervals)
        assert read_intervals(tmp_path) == intervals
    assert json.loads((tmp_path / "passed_over.json").read_text())[0]["rows_of_steps"] == [5, 8]


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[{}]", '[{"rows_of_steps": [1, 2], "other": 3}]', '[{"rows_of_steps": [1]}]', "3"),
        json.dumps([{**asdict(interval(4, 8)), "after_step": "4"}]),
        json.dumps([{**asdict(interval(4, 8)), "rows": float("nan")}]),
        json.dumps([{**asdict(interval(4, 8)), "cursors": [[[]]]}]),
    ],
)
def test_a_damaged_file_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "passed_over.json").write_text(text)
    with pytest.raises(UserError, match=r"passed_over\.json is damaged"):
        read_intervals(tmp_path)


def test_the_lanes_jump_behind_the_last_interval_of_a_step() -> None:
    found = jumps([interval(4, 8), interval(4, 11)], lanes=2, corpora=1)
    assert found == {4: [(Cursor(11, ((32, 4),)),), (Cursor(12, ((32, 5),)),)]}


@pytest.mark.parametrize(("lanes", "corpora"), [(3, 1), (2, 2), (0, 0)])
def test_an_interval_of_another_number_of_lanes_or_corpora_is_refused(lanes: int, corpora: int) -> None:
    with pytest.raises(UserError, match=r"the interval after step 4 in passed_over\.json does not say where each"):
        jumps([interval(4, 8)], lanes, corpora)


def test_intervals_of_steps_that_are_done_anew_are_dropped() -> None:
    intervals = [interval(4, 8), interval(12, 15)]
    assert with_one_more(intervals, interval(12, 17)) == [*intervals, interval(12, 17)]
    assert with_one_more(intervals, interval(8, 17)) == [interval(4, 8), interval(8, 17)]


@given(steps=st.lists(st.integers(0, 30), max_size=6), at=st.integers(0, 31), loses_file=st.booleans())
def test_a_checkpoint_and_the_file_know_together_what_the_run_knew(steps: list[int], at: int, loses_file: bool) -> None:
    intervals: list[PassedOver] = []
    for number, step in enumerate(sorted(steps)):
        intervals = with_one_more(intervals, interval(step, step + 1 + number))
    of_checkpoint = [each for each in intervals if each.after_step < at]
    found = known(of_checkpoint, at, [] if loses_file else intervals)
    assert found == (of_checkpoint if loses_file else intervals)


def test_a_run_has_jumped_over_the_intervals_before_the_step_that_it_stands_after() -> None:
    intervals = [interval(4, 8), interval(12, 15)]
    assert behind(intervals, 4) == []
    assert behind(intervals, 5) == behind(intervals, 12) == intervals[:1]
    assert behind(intervals, 13) == intervals
