"""Muon's updates in batches, beside the iteration matrix by matrix."""

from __future__ import annotations

import math

import pytest
import torch

from maskloom.optim import newton_schulz
from maskloom.optim.newton_schulz import batches, has_bf16, orthogonalized, updates_of

SHAPES = [(8, 8), (8, 24), (24, 8), (8, 8), (8, 24)]


def matrices(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def plain(matrix: torch.Tensor) -> torch.Tensor:
    """Jordan et al. (2024), in fp64."""
    x = (matrix.T if matrix.shape[0] > matrix.shape[1] else matrix).double()
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.T if matrix.shape[0] > matrix.shape[1] else x).float()


@pytest.mark.parametrize("method", ["gram", "standard"])
def test_a_batch_is_its_matrices_one_by_one(method: str) -> None:
    gradients, momenta = matrices(0), matrices(1)
    expected_momenta = [0.9 * m + 0.1 * g for g, m in zip(gradients, momenta, strict=True)]
    expected = [
        plain(0.1 * g + 0.9 * m) * math.sqrt(max(1.0, g.shape[0] / g.shape[1]))
        for g, m in zip(gradients, expected_momenta, strict=True)
    ]
    found = updates_of(gradients, momenta, 0.9, method)
    bound = 0.05 if method == "standard" and has_bf16() else 1e-4
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert float((one - other).norm() / other.norm()) < bound
    for one, other in zip(momenta, expected_momenta, strict=True):
        torch.testing.assert_close(one, other)


def test_some_matrices_of_all_move_every_momentum() -> None:
    gradients, momenta = matrices(0), matrices(1)
    every = updates_of(matrices(0), matrices(1), 0.9, "gram")
    found = updates_of(gradients, momenta, 0.9, "gram", [4, 0])
    torch.testing.assert_close(found, [every[4], every[0]])
    assert not any(torch.equal(one, other) for one, other in zip(momenta, matrices(1), strict=True))


def test_batches_hold_each_matrix_once_and_are_not_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newton_schulz, "BATCH_ELEMENTS", 64)
    found = batches({2: (4, 8), 3: (4, 8), 5: (4, 8), 7: (8, 4), 9: (16, 16)})
    assert found == [[2, 3], [5], [7], [9]]


def test_the_singular_values_are_about_one() -> None:
    values = torch.linalg.svdvals(orthogonalized(torch.stack([matrices(3)[1], matrices(4)[1]]), "gram"))
    assert values.min() > 0.5
    assert values.max() < 1.5
