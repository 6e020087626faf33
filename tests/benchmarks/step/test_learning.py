"""Where a curve reaches a loss, and a loss that all reach."""

from __future__ import annotations

import pytest
from step.learning import RECIPES, common_target, reached

from maskloom.errors import UserError

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


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_training_that_ends_in_its_warm_up_is_refused(device) -> None:
    recipe = RECIPES[device]
    assert recipe.training(seed=1, steps=None).total_steps == recipe.steps
    with pytest.raises(UserError, match=f"--steps {recipe.warmup_steps}: the warm-up alone takes"):
        recipe.training(seed=1, steps=recipe.warmup_steps)
