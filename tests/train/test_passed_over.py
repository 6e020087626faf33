"""Which intervals of the data a run went past, and where its lanes jump."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.data.cursors import Cursor
from maskloom.errors import UserError
from maskloom.train.passed_over import PassedOver, behind, jumps, known, read_intervals, with_one_more, write_intervals


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
