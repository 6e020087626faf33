"""Slow ranks: named when they are slow for long, and only then."""

from __future__ import annotations

import pytest

from maskloom.train.stragglers import LINES, Stragglers


def lines(own_s: list[float], count: int, speaks: bool = True) -> float:
    stragglers = Stragglers(["a", "b", "c"][: len(own_s)], speaks)
    return [stragglers.add(own_s) for _ in range(count)][-1]


def test_a_slow_rank_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines([0.2, 0.5, 0.2], LINES + 5) == pytest.approx(2.5)
    said = capsys.readouterr().err
    assert said.count("WARNING") == 1
    assert "rank 1 on b is slow: 0.5 s a step of its own, where half the ranks take 0.2 s or less" in said


def test_of_two_ranks_the_slower_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines([0.2, 0.8], LINES) == pytest.approx(4)
    assert "rank 1 on b" in capsys.readouterr().err


@pytest.mark.parametrize("own_s", [[0.2, 0.29, 0.2], [0.001, 0.009, 0.001], [0.0, 0.0, 0.0]])
def test_little_differences_say_nothing(own_s: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    lines(own_s, 2 * LINES)
    assert not capsys.readouterr().err


def test_a_moment_says_nothing_and_others_stay_silent(capsys: pytest.CaptureFixture[str]) -> None:
    lines([0.2, 0.5], LINES - 1)
    lines([0.2, 0.5], LINES, speaks=False)
    stragglers = Stragglers(["a", "b"], True)
    for slow in (0.5, 0.5, 0.2, 0.5, 0.5):
        stragglers.add([0.2, slow])
    assert not capsys.readouterr().err
