"""Where a curve reaches a loss, and a loss that all reach."""

from __future__ import annotations

from pathlib import Path

import pytest
from step.learning import CURVES, RECIPES, apart, common_target, reached

from maskloom.config_file import load_config
from maskloom.errors import UserError

CONFIGS = Path(__file__).parents[3] / "configs"
CURVE = [(0, 0, 0.0, 9.0), (10, 1000, 2.0, 7.0), (20, 2100, 5.0, 6.0), (30, 3000, 7.0, 6.5)]


def test_a_loss_is_reached_on_the_line_between_two_points() -> None:
    assert reached(CURVE, 6.25) == pytest.approx({"steps": 17.5, "tokens": 1825.0, "seconds": 4.25})
    assert reached(CURVE, 7.0) == {"steps": 10.0, "tokens": 1000.0, "seconds": 2.0}
    assert reached(CURVE, 5.9) is None


def test_the_common_target_is_reached_by_every_curve() -> None:
    other = [(0, 0, 0.0, 9.0), (10, 1000, 1.0, 6.41)]
    target = common_target([CURVE, other])
    assert target == pytest.approx(6.45)  # 6.41, rounded up to a twentieth
    assert all(reached(curve, target) for curve in (CURVE, other))


def test_two_systems_are_compared_seed_by_seed_where_both_were_looked_at() -> None:
    losses = {("maskloom-eager", 1): 5.0, ("maskloom-eager", 2): 5.4, ("hf-fed", 2): 5.5, ("hf-fed", 1): 4.9}
    runs = [
        {"system": system, "seed": seed, "curve": [[0, 0, 0.0, 9.0], [10, 1, 1.0, loss]]}
        for (system, seed), loss in losses.items()
    ]
    runs[0]["curve"].append([20, 2, 2.0, 4.0])
    begin, end = apart(runs)
    assert (begin.step, begin.difference, begin.noise) == (0, 0.0, 0.0)
    assert (end.step, end.ours, end.theirs) == (10, (5.0, 5.4), (4.9, 5.5))
    assert end.differences == pytest.approx([0.1, -0.1])
    assert end.difference == pytest.approx(0.0)
    # Variances of 0.08 and 0.18 over two seeds each, and the variance of a difference of means is the sum of both, halved.
    assert end.noise == pytest.approx(((0.08 + 0.18) / 2) ** 0.5)
    assert apart(runs[:1]) == []


def test_the_curves_are_of_the_quickstarts_size() -> None:
    assert {name: recipe.case.architecture for name, recipe in CURVES.items()} == {name: name for name in CURVES}
    tiny = load_config(CONFIGS / "modernbert_tiny.yaml").model
    case = CURVES["modernbert"].case
    assert (case.intermediate_size, case.local_attention) == (tiny.intermediate_size, tiny.local_attention)
    assert {(recipe.case.hidden_size, recipe.case.layers, recipe.case.seq_len) for recipe in CURVES.values()} == {
        (128, 2, 64)
    }


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_training_that_ends_in_its_warm_up_is_refused(device) -> None:
    recipe = RECIPES[device]
    assert recipe.training(seed=1, steps=None).total_steps == recipe.steps
    with pytest.raises(UserError, match=f"--steps {recipe.warmup_steps}: the warm-up alone takes"):
        recipe.training(seed=1, steps=recipe.warmup_steps)
