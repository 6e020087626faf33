"""In which settings runs differ, and whether their held-out losses compare."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from maskloom.config_file import dump_config, parse_config
from maskloom.errors import UserError
from maskloom.plain_yaml import write_yaml
from maskloom.viewing.differences import differing, leaves, settings_of, why_not_comparable


@pytest.fixture
def two(tmp_path: Path, run_config: dict) -> list[Path]:
    """Two runs that differ in their folders alone."""
    for name in ("one", "two"):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "model" / "tokenizer.json").write_text("{}")
        config = parse_config({**run_config, "run_dir": str(tmp_path / name)}, name)
        (tmp_path / name / "config.yaml").write_text(dump_config(config))
    return [tmp_path / "one", tmp_path / "two"]


def test_only_what_differs_is_found(two: list[Path], run_config: dict) -> None:
    assert differing(settings_of(two)) == {}
    tree = copy.deepcopy(run_config)
    tree["optimizer"]["lr"] = 0.25
    tree["phases"].append({**tree["phases"][0], "steps": 5})
    (two[1] / "config.yaml").write_text(dump_config(parse_config(tree, "two")))
    found = differing(settings_of(two))
    assert found["optimizer.lr"] == [0.001, 0.25]
    assert found["phases.1.steps"] == [None, 5]
    assert "phases.1.mask_rate" not in found, "null, and not there: both say nothing"
    assert all(key == "optimizer.lr" or key.startswith("phases.1.") for key in found)


def test_a_key_that_came_later_has_its_default(two: list[Path], run_config: dict) -> None:
    (two[0] / "config.yaml").write_text(write_yaml(run_config))  # the rest is left to its defaults
    assert differing(settings_of(two)) == {}


def test_a_configuration_of_another_version_is_shown_as_written(two: list[Path]) -> None:
    (two[1] / "config.yaml").write_text("model: {architecture: of_tomorrow}\nseed: 3\n")
    found = differing(settings_of(two))
    assert found["model.architecture"] == ["bert", "of_tomorrow"]
    assert "seed" not in found
    (two[1] / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"no config\.yaml"):
        settings_of(two)


def test_empty_sections_are_leaves() -> None:
    tree = {"a": {"b": [1, {"c": None}], "d": {}}, "e": []}
    assert dict(leaves(tree)) == {"a.b.0": 1, "a.b.1.c": None, "a.d": {}, "e": []}


def test_losses_of_other_masks_or_tokens_do_not_compare(two: list[Path]) -> None:
    assert why_not_comparable(two, {"optimizer.lr": [1, 2]}) == []
    differences = {"evaluation.mask_rate": [0.15, 0.3], "data.train.0.path": ["a", "b"]}
    assert why_not_comparable(two, differences) == ["evaluation.mask_rate", "data.train.0.path"]
    (two[1] / "model" / "tokenizer.json").write_text("{ }")
    assert why_not_comparable(two, {}) == ["their tokenizers"]
