"""Attention piece by piece, as a loop and as the operator of compiled code, against a mask of whole rows."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from maskloom.models.attention import Pieces, Way, attend, piece_mask
from maskloom.models.by_piece import QUERIES, _attend, by_piece

from .test_windows import numbers_and_positions

HEADS, SIZE = 2, 8
BUCKETS = {
    "one a row": [[12], [12]],
    "many": [[1, 2, 9], [12], [4, 4, 4]],
    "of one slot": [[1] * 5],
    "more than the operator takes at once": [[QUERIES + 1, 7, 2 * QUERIES]],
}


def compiled(*parts: torch.Tensor, dropout: float = 0.0) -> torch.Tensor:
    """What compiled code calls."""
    seed = torch.randint(2**62, (), dtype=torch.int64)
    found: torch.Tensor = _attend(*parts, seed, dropout)
    return found


@pytest.mark.parametrize("rows", BUCKETS.values(), ids=BUCKETS)
@pytest.mark.parametrize("form", [lambda *parts: by_piece(*parts, 0.0), compiled], ids=["loop", "operator"])
def test_values_and_gradients_are_those_of_the_mask(form: object, rows: list[list[int]]) -> None:
    assert callable(form)
    numbers, positions = numbers_and_positions(rows)
    torch.manual_seed(0)
    parts = [torch.randn(len(numbers), HEADS, SIZE, requires_grad=True) for _ in range(3)]
    upstream = torch.randn(len(numbers), HEADS, SIZE)
    masked = attend(*parts, Pieces(torch.empty(0), piece_mask(numbers, sum(rows[0])), sum(rows[0]), way=Way.ROWS), 0.0)
    output = form(*parts, positions)
    torch.testing.assert_close(output, masked, atol=2e-6, rtol=0)
    expected = torch.autograd.grad(masked, parts, upstream)
    for ours, wanted in zip(torch.autograd.grad(output, parts, upstream), expected, strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", [lambda *parts: by_piece(*parts, 0.0), compiled], ids=["loop", "operator"])
def test_half_precision_is_off_by_its_rounding(form: object, dtype: torch.dtype) -> None:
    assert callable(form)
    _, positions = numbers_and_positions([[30, 20]])
    torch.manual_seed(0)
    parts = torch.randn(3, 50, HEADS, SIZE).to(dtype)
    half, exact = form(*parts, positions), by_piece(*parts.float(), positions, 0.0)
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), exact, atol=4 * torch.finfo(dtype).eps, rtol=4 * torch.finfo(dtype).eps)


def test_the_operators_backward_drops_what_its_forward_dropped() -> None:
    """The output is linear in the values: so its gradient is the difference that a step makes."""
    _, positions = numbers_and_positions([[30, 20]])
    torch.manual_seed(0)
    query, key, value, upstream, step = torch.randn(5, 50, HEADS, SIZE, dtype=torch.float32)
    seed = torch.tensor(7)
    value.requires_grad_()
    output = _attend(query, key, value, positions, seed, 0.5)
    (gradient,) = torch.autograd.grad(output, value, upstream)
    difference = ((_attend(query, key, value + step, positions, seed, 0.5) - output) * upstream).sum()
    torch.testing.assert_close((gradient * step).sum(), difference, atol=1e-3, rtol=1e-4)
    other = _attend(query, key, value, positions, torch.tensor(8), 0.5)
    assert not torch.equal(other, output)
    assert not _attend(query, key, value, positions, seed, 1.0).any()


def test_a_slot_of_another_piece_is_not_seen() -> None:
    numbers, positions = numbers_and_positions([[2, 9], [11]])
    value = torch.randn(22, 1, SIZE, requires_grad=True)
    (gradient,) = torch.autograd.grad(by_piece(*torch.randn(2, 22, 1, SIZE), value, positions, 0.0)[4].sum(), value)
    assert gradient.abs().sum((1, 2)).nonzero().flatten().tolist() == list(range(2, 11))
    assert numbers[2:11].unique().tolist() == [1]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_compiled_code_is_one_graph_for_all_pieces(dropout: float) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    run = torch.compile(by_piece, backend=counter, fullgraph=True, dynamic=False)
    parts = [torch.randn(24, HEADS, SIZE, requires_grad=True) for _ in range(3)]
    for rows in ([[12], [12]], [[5, 7], [1, 1, 10]], [[24]]):
        _, positions = numbers_and_positions(rows)
        output = run(*parts, positions, dropout)
        if not dropout:
            torch.testing.assert_close(output, by_piece(*parts, positions, 0.0), atol=2e-6, rtol=0)
        output.sum().backward()
    assert counter.frame_count == 1
