"""The learning rate: by hand, by properties, and beside other people's schedulers where the definitions coincide."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from maskloom.config import Optimizer, Stretch
from maskloom.config_file import parse_config
from maskloom.optim.schedule import learning_rate

SCHEDULES = ("linear", "cosine", "wsd", "polynomial")
ALL = (*SCHEDULES, "1-sqrt")


def rates(settings: Optimizer, steps: int) -> list[float]:
    """The rates of a run of one stretch, steps 1 to `steps`."""
    stretch = Stretch(0, 0, steps, settings.lr, settings.warmup_steps)
    return [learning_rate(step, settings, [stretch]) for step in range(1, steps + 1)]


@st.composite
def runs(draw: st.DrawFn) -> tuple[Optimizer, int]:
    """Settings and total steps of a run that the configuration admits."""
    total = draw(st.integers(2, 300))
    warmup = draw(st.integers(0, total - 1))
    schedule = draw(st.sampled_from(ALL))
    own: dict[str, Any] = {}
    if schedule == "wsd" or (schedule == "1-sqrt" and draw(st.booleans())):
        own["decay_steps"] = draw(st.integers(1, total - warmup))
    if schedule == "polynomial":
        own["power"] = draw(st.floats(0.1, 4.0))
    settings = Optimizer(
        lr=draw(st.floats(1e-6, 1.0)),
        schedule=schedule,
        warmup_steps=warmup,
        final_lr_share=draw(st.sampled_from([0.0, 0.1, 1.0])),
        **own,
    )
    return settings, total


@given(runs())
def test_rates_rise_to_the_highest_and_fall_to_the_lowest_and_none_is_without_effect(
    run: tuple[Optimizer, int],
) -> None:
    settings, total = run
    values = rates(settings, total)
    warmup, highest, lowest = settings.warmup_steps, settings.lr, settings.lr * settings.final_lr_share
    if warmup:
        assert values[warmup - 1] == pytest.approx(highest, rel=2**-52)
    assert values[:warmup] == [highest * step / warmup for step in range(1, warmup + 1)]
    slack = highest * 1e-12
    assert all(one >= other - slack for one, other in itertools.pairwise(values[max(warmup - 1, 0) :]))
    assert all(0 < value <= highest + slack for value in values)
    assert min(values[warmup:], default=highest) >= lowest - slack
    if settings.decay_steps:
        stable = values[warmup : total - settings.decay_steps]
        assert stable == [highest] * len(stable)
    beyond = Stretch(0, 0, total, highest, warmup)
    assert learning_rate(total + 1, settings, [beyond]) == pytest.approx(lowest, abs=slack)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"warmup_steps": 2}, [1 / 2, 1, 3 / 4, 2 / 4, 1 / 4]),
        ({"warmup_steps": 2, "final_lr_share": 0.2}, [1 / 2, 1, 0.8, 0.6, 0.4]),
        ({"schedule": "wsd", "warmup_steps": 1, "decay_steps": 2}, [1, 1, 1, 2 / 3, 1 / 3]),
        ({"schedule": "constant", "warmup_steps": 2}, [1 / 2, 1, 1, 1, 1]),
        (
            {"schedule": "1-sqrt", "warmup_steps": 2},
            [1 / 2, 1, 1 - math.sqrt(1 / 4), 1 - math.sqrt(2 / 4), 1 - math.sqrt(3 / 4)],
        ),
        (
            {"schedule": "1-sqrt", "decay_steps": 2, "final_lr_share": 0.1},
            [1, 1, 1, 0.1 + 0.9 * (1 - math.sqrt(1 / 3)), 0.1 + 0.9 * (1 - math.sqrt(2 / 3))],
        ),
        (
            {"schedule": "polynomial", "power": 0.5, "warmup_steps": 2},
            [1 / 2, 1, math.sqrt(3 / 4), math.sqrt(2 / 4), math.sqrt(1 / 4)],
        ),
        # Of four equal parts of half a turn: cos 45°, 90° and 135°.
        (
            {"schedule": "cosine", "warmup_steps": 2},
            [1 / 2, 1, (1 + math.sqrt(0.5)) / 2, 1 / 2, (1 - math.sqrt(0.5)) / 2],
        ),
    ],
)
def test_by_hand(settings: dict[str, Any], expected: list[float]) -> None:
    assert rates(Optimizer(lr=1.0, **settings), 5) == pytest.approx(expected)


@given(st.floats(1e-6, 1.0), st.integers(0, 99), st.integers(100, 500))
def test_linear_without_a_rest_is_this_expression_bit_for_bit(highest: float, warmup: int, total: int) -> None:
    """Runs that exist resume as they were."""
    expected = [
        highest * step / warmup if step <= warmup else highest * (total + 1 - step) / (total + 1 - warmup)
        for step in range(1, total + 1)
    ]
    assert rates(Optimizer(lr=highest, warmup_steps=warmup), total) == expected


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_schedules_of_transformers_are_the_same(schedule: str) -> None:
    """Theirs count steps from 0 and reach the end at `num_training_steps`: our step s of S is their step s of S + 1."""
    warmup, total, decay = 7, 40, 11
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    match schedule:
        case "linear":
            theirs = transformers.get_linear_schedule_with_warmup(optimizer, warmup, total + 1)
        case "cosine":
            theirs = transformers.get_cosine_schedule_with_warmup(optimizer, warmup, total + 1)
        case "wsd":
            theirs = transformers.get_wsd_schedule(
                optimizer, warmup, decay + 1, num_training_steps=total + 1, decay_type="linear"
            )
        case _:
            theirs = transformers.get_polynomial_decay_schedule_with_warmup(
                optimizer, warmup, total + 1, lr_end=0.0, power=0.5
            )
    expected = []
    for _ in range(total):
        optimizer.step()
        theirs.step()
        expected.append(optimizer.param_groups[0]["lr"])
    own = {"wsd": {"decay_steps": decay}, "polynomial": {"power": 0.5}}.get(schedule, {})
    ours = rates(Optimizer(lr=0.3, schedule=schedule, warmup_steps=warmup, **own), total)  # type: ignore[arg-type]
    assert ours == pytest.approx(expected, rel=1e-12)


def test_torchs_cosine_is_the_same() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=21, eta_min=0.03)
    expected = []
    for _ in range(20):
        optimizer.step()
        theirs.step()
        expected.append(optimizer.param_groups[0]["lr"])
    ours = rates(Optimizer(lr=0.3, schedule="cosine", final_lr_share=0.1), 20)
    assert ours == pytest.approx(expected, rel=1e-9)  # theirs is a recursion


def test_the_1_sqrt_decay_of_transformers_is_the_same() -> None:
    warmup, total, decay = 7, 40, 11
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    theirs = transformers.get_wsd_schedule(
        optimizer, warmup, decay + 1, num_training_steps=total + 1, decay_type="1-sqrt"
    )
    expected = []
    for _ in range(total):
        optimizer.step()
        theirs.step()
        expected.append(optimizer.param_groups[0]["lr"])
    settings = Optimizer(lr=0.3, schedule="1-sqrt", warmup_steps=warmup, decay_steps=decay)
    assert rates(settings, total) == pytest.approx(expected, rel=1e-12)


def test_a_phase_may_decay_otherwise_than_the_rest() -> None:
    """ModernBERT's way: constant, constant at another rate, then 1-sqrt; and a phase that is again as `optimizer` says."""
    tree = {
        "run_dir": "run",
        "tokenizer": "tok",
        "data": {"train": "corpus"},
        "optimizer": {"lr": 1.0, "warmup_steps": 1, "schedule": "constant"},
        "phases": [
            {"steps": 2},
            {"steps": 2, "rewarm_up": {"lr": 0.5}},
            {"steps": 3, "rewarm_up": {"lr": 0.5, "schedule": "1-sqrt", "final_lr_share": 0.2}},
            {"steps": 3, "rewarm_up": {"lr": 0.1, "schedule": "wsd", "decay_steps": 1}},
            {"steps": 1, "rewarm_up": {"lr": 0.3}},
        ],
    }
    config = parse_config(tree, "here")
    values = [learning_rate(step, config.optimizer, config.schedules) for step in range(1, 12)]
    decay = [0.1 + 0.4 * (1 - math.sqrt(part / 4)) for part in (1, 2, 3)]
    assert values == pytest.approx([1, 1, 0.5, 0.5, *decay, 0.1, 0.1, 0.05, 0.3])


def test_a_phase_that_rewarms_has_a_schedule_of_its_own() -> None:
    tree = {
        "run_dir": "run",
        "tokenizer": "tok",
        "data": {"train": "corpus"},
        "optimizer": {"lr": 1.0, "warmup_steps": 1},
        "phases": [
            {"steps": 2},
            {"steps": 1},
            {"steps": 3, "rewarm_up": {"lr": 0.5, "warmup_steps": 2}},
            {"steps": 1, "rewarm_up": {"lr": 0.1}},
        ],
    }
    config = parse_config(tree, "here")
    assert config.schedules == (Stretch(0, 0, 3, 1.0, 1), Stretch(2, 3, 3, 0.5, 2), Stretch(3, 6, 1, 0.1, 0))
    values = [learning_rate(step, config.optimizer, config.schedules) for step in range(1, 8)]
    assert values == pytest.approx([1, 2 / 3, 1 / 3, 0.25, 0.5, 0.25, 0.05])
