"""What a run needs of memory and disk."""

from __future__ import annotations

from typing import Any

import pytest

from maskloom.config_file import parse_config
from maskloom.launch.doctor.estimates import checkpoint_bytes, checkpoints_at_most, rank_bytes
from tests.trees import tree_with


@pytest.mark.parametrize(
    ("settings", "steps", "expected"),
    [
        ({"every_steps": 500, "keep_last": 2}, 10_000, 3),
        ({"every_steps": 500, "keep_last": 4}, 10_000, 5),
        ({"every_steps": 500}, 600, 2),
        ({"every_steps": 0}, 600, 1),
        ({"every_steps": 500, "keep_every_steps": 1000}, 10_000, 13),
        ({"every_steps": 400, "keep_every_steps": 1000}, 10_000, 8),  # of multiples of 1000, those saved: of 2000
    ],
)
def test_checkpoints_side_by_side(settings: dict[str, Any], steps: int, expected: int) -> None:
    config = parse_config(tree_with(checkpoint=settings, phases=[{"steps": steps}]), "here")
    assert checkpoints_at_most(config.checkpoint, config.total_steps) == expected


@pytest.mark.parametrize(
    ("engine", "optimizer", "a_parameter"),
    [
        ({"zero_stage": 0, "precision": "fp32"}, "adamw", 4 + 8),
        ({"zero_stage": 1, "precision": "bf16"}, "adamw", 2 + 4 + 8),
        ({"zero_stage": 3, "precision": "bf16"}, "lamb", 4 + 8),
        ({"zero_stage": 1, "precision": "fp32"}, "muon", 4 + 4 + 4),
    ],
)
def test_bytes_of_a_checkpoint(engine: dict[str, Any], optimizer: str, a_parameter: int) -> None:
    settings = parse_config(tree_with(engine=engine, optimizer={"name": optimizer, "gradient_clipping": 0.0}), "here")
    assert checkpoint_bytes(settings.engine, settings.optimizer, 1000) == 1000 * a_parameter


@pytest.mark.parametrize(
    ("engine", "optimizer", "a_parameter"),
    [
        ({"zero_stage": 0, "precision": "fp32"}, "adamw", 4 + 4 + 8),
        ({"zero_stage": 1, "precision": "bf16"}, "adamw", 2 + 2 + (4 + 8) / 4),
        ({"zero_stage": 2, "precision": "bf16"}, "adamw", 2 + (2 + 4 + 8) / 4),
        ({"zero_stage": 3, "precision": "bf16"}, "lamb", (2 + 2 + 4 + 8) / 4),
        ({"zero_stage": 1, "precision": "fp32"}, "muon", 4 + 4 + 4 / 4),
    ],
)
def test_bytes_of_a_rank(engine: dict[str, Any], optimizer: str, a_parameter: float) -> None:
    """Weights, gradients and the optimizer's numbers; what the stage spreads, over four ranks."""
    settings = parse_config(tree_with(engine=engine, optimizer={"name": optimizer, "gradient_clipping": 0.0}), "here")
    assert rank_bytes(settings.engine, settings.optimizer, 1000, 4) == 1000 * a_parameter
    assert rank_bytes(settings.engine, settings.optimizer, 0, 4) == 0
