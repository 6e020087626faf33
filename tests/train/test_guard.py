"""The decision whether a step is taken."""

from __future__ import annotations

import json
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.config import Guard
from maskloom.train.guard import GuardState, after_step, highest_loss, must_roll_back, why_refused

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


def test_it_goes_back_after_so_many_in_a_row() -> None:
    guard = Guard(skips_before_rollback=3)
    state, _ = run([1.0, math.nan, math.nan], guard)
    assert not must_roll_back(state, guard)
    assert not must_roll_back(run([1.0, math.nan, math.nan], guard, state)[0], guard), "one between was taken"
    assert must_roll_back(run([math.inf], guard, state)[0], guard)


def test_a_state_of_another_version_is_refused() -> None:
    with pytest.raises(TypeError):
        GuardState.from_json({"unknown": 1})
