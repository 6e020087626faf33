"""`rehearse.checks`: figures from the facts, and what is out of its limits."""

from __future__ import annotations

from typing import Any

import pytest
from rehearse import checks

from .facts import SLOTS, UNIT, facts, modern


def test_figures_of_a_layer() -> None:
    found = checks.figures(facts())
    assert found["h bytes a token, layer forward"] == 34
    assert found["h bytes a token, layer backward"] == 64
    assert found["h bytes a token, saved"] == 34
    assert found["Inductor's kernels, layer forward"] == 3
    assert found["Inductor's kernels, layer backward"] == 7
    assert found["instructions a row, dropout + LayerNorm"] == 800
    assert found["instructions an element, GELU forward"] == 20
    assert found["instructions an element, GELU backward"] == 40


def test_every_limit_is_of_a_figure() -> None:
    whole = facts()
    alone = {name: value for name, value in whole.items() if name not in ("layer", "rest", "saved_bytes_a_layer")}
    for given, limits in ((whole, checks.WHOLE), (alone, checks.ZERO3), (modern(), checks.MODERN)):
        assert checks.limits_of(given) is limits
        assert limits.keys() == checks.figures(given).keys()


def test_what_is_within_its_limits_is_not_named() -> None:
    assert checks.failures(facts()) == []


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("forward graphs", {"graphs": {"forward": 2, "backward": 1}}),
        ("captured graphs", {"captured": 2}),
        ("graph breaks", {"breaks": {"a call of print": 1}}),
        ("spilled bytes", {"spilled_bytes": {"triton_per_norm_0": 8}}),
        ("largest fp32 over [K, V]", {"largest_fp32": 76 * 30522}),
        ("h bytes a token, saved", {"saved_bytes_a_layer": 40 * UNIT}),
    ],
)
def test_what_is_out_of_its_limits_is_named(name: str, change: dict[str, Any]) -> None:
    (line,) = checks.failures({**facts(), **change})
    assert line.startswith(f"{name}: ")


def test_a_modernberts_layer() -> None:
    found = checks.figures(modern())
    assert found["instructions an element, rotation"] == 20
    assert found["instructions an element, gated unit forward"] == 24
    assert found["instructions an element, gated unit backward"] == 130
    assert checks.failures(modern()) == []


def test_angles_that_are_computed_in_a_layer_are_found() -> None:
    given = modern()
    given["layer"]["forward"]["triton_poi_cat_mul"]["issued"] = None  # the loop of a sine
    (line,) = checks.failures(given)
    assert line.startswith("instructions an element, rotation: inf")


def test_a_draw_an_element_is_found() -> None:
    given = facts()
    given["layer"]["forward"]["triton_per_norm"]["issued"] = 2 * 2621 * SLOTS
    (line,) = checks.failures(given)
    assert line.startswith("instructions a row, dropout + LayerNorm: 2621")
