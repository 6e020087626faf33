"""Weights and optimizer state from one layout of vectors into another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from maskloom.errors import UserError
from maskloom.train.engine.reshape import Piece, Vector, _fill

WEIGHTS = torch.arange(12.0)
MOMENT = WEIGHTS + 100
FOLDER = Path("step-00000003")


def whole(state: dict[str, Any]) -> list[Vector]:
    """Stage 0: a parameter of shape [3, 4] in one vector."""
    return [Vector(WEIGHTS.view(3, 4), state, [Piece("matrix", 0, 12, 0)])]


def in_two(state_of: list[dict[str, Any]] | None = None) -> list[Vector]:
    """Stage 1 on two ranks: 7 elements and 5, of vectors of 7; the second one's weights were saved without what pads them."""
    states = state_of or [{}, {}]
    return [
        Vector(WEIGHTS[:7].clone(), states[0], [Piece("matrix", 0, 7, 0)]),
        Vector(WEIGHTS[7:].clone(), states[1], [Piece("matrix", 7, 5, 0)]),
    ]


def filled(wanted: list[Vector], saved: list[Vector]) -> list[dict[str, Any]]:
    """The states of `wanted`, whose weights are checked."""
    expected = [vector.weights.clone() for vector in wanted]
    for vector in wanted:
        vector.weights.zero_()
    states: dict[torch.Tensor, dict[str, Any]] = {}
    _fill(states, wanted, saved, FOLDER)
    assert all(torch.equal(vector.weights, weights) for vector, weights in zip(wanted, expected, strict=True))
    return [states[vector.weights] for vector in wanted]


def fresh(vectors: list[Vector]) -> list[Vector]:
    """The same layout with tensors of its own, and no state."""
    return [vector._replace(weights=vector.weights.clone(), state={}) for vector in vectors]


def test_an_element_for_each_weight_goes_where_its_weight_goes() -> None:
    first, second = filled(fresh(in_two()), whole({"moment": MOMENT.view(3, 4), "step": 5}))
    assert torch.equal(first["moment"], MOMENT[:7])
    assert torch.equal(second["moment"], MOMENT[7:])
    assert (first["step"], second["step"]) == (5, 5)


def test_state_may_be_padded() -> None:
    padded = torch.cat([MOMENT[7:], torch.full((2,), -1.0)])
    (state,) = filled(fresh(whole({})), in_two([{"moment": MOMENT[:7]}, {"moment": padded}]))
    assert torch.equal(state["moment"], MOMENT.view(3, 4))


def test_state_of_another_shape_stays_with_the_same_weights() -> None:
    rows = torch.rand(3, 1)
    (state,) = filled(fresh(whole({})), whole({"rows": rows, "moment": MOMENT.view(3, 4)}))
    assert torch.equal(state["rows"], rows)
    assert state["rows"].data_ptr() != rows.data_ptr()
    assert torch.equal(state["moment"], MOMENT.view(3, 4))


def test_state_of_another_shape_is_not_cut() -> None:
    with pytest.raises(
        UserError, match=r"optimizer's rows has 3 elements for 12 weights.*Set engine and ranks as they were"
    ):
        _fill({}, fresh(in_two()), whole({"rows": torch.rand(3, 1)}), FOLDER)
