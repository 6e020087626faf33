"""Attention in blocks of a window against a mask of whole rows: values, gradients, and who sees whom."""

from __future__ import annotations

import pytest
import torch

from maskloom.models.attention import Pieces, Way, added_to_scores, attend, piece_mask
from maskloom.models.windows import block_mask, in_blocks

HEADS, SIZE = 2, 8


def numbers_and_positions(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """`pieces` and `positions` [T] of rows whose pieces have these lengths."""
    numbers = [number for row in rows for number, length in enumerate(row) for _ in range(length)]
    positions = [position for row in rows for length in row for position in range(length)]
    return torch.tensor(numbers, dtype=torch.int32), torch.tensor(positions)


BUCKETS = {
    "shorter than the window": [[3, 2, 4, 1, 2], [5, 5, 2]],
    "as long as the window": [[8, 4], [4, 8]],
    "longer than the window": [[12], [12]],
    "a row of one": [[1]],
    "many pieces": [[1] * 12, [2] * 6, [3] * 4, [11, 1]],
    "filling behind them": [[7, 5], [12]],
    "long rows": [[40, 1], [2, 39], [41]],
}


@pytest.mark.parametrize("window", [1, 2, 3, 5, 8, 11, 64])
@pytest.mark.parametrize("rows", BUCKETS.values(), ids=BUCKETS)
def test_values_and_gradients_are_those_of_the_mask(rows: list[list[int]], window: int) -> None:
    numbers, positions = numbers_and_positions(rows)
    seq_len = sum(rows[0])
    torch.manual_seed(0)
    parts = [torch.randn(len(numbers), HEADS, SIZE, requires_grad=True) for _ in range(3)]
    upstream = torch.randn(len(numbers), HEADS, SIZE)
    ends = torch.empty(0)  # not looked at
    found = []
    for mask, way in (
        (piece_mask(numbers, seq_len, window), Way.ROWS),
        (block_mask(positions, window), Way.BLOCKS),
    ):
        mask = added_to_scores(mask, torch.float32)
        output = attend(*parts, Pieces(ends, mask, seq_len, window, way=way), 0.0)
        found.append([output, *torch.autograd.grad(output, parts, upstream)])
    for ours, wanted in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, wanted, atol=2e-6, rtol=0)


@pytest.mark.parametrize("window", [1, 3, 4])
def test_a_slot_sees_its_window_and_its_piece_alone(window: int) -> None:
    """By the gradients: 11 slots are no multiple of a window."""
    numbers, positions = numbers_and_positions([[2, 9]])
    mask = block_mask(positions, window)
    for slot in range(11):
        value = torch.randn(11, 1, SIZE, requires_grad=True)
        query, key = torch.randn(2, 11, 1, SIZE)
        (gradient,) = torch.autograd.grad(in_blocks(query, key, value, mask, 0.0)[slot].sum(), value)
        seen = gradient.abs().sum((1, 2)).nonzero().flatten().tolist()
        assert seen == [other for other in range(11) if numbers[other] == numbers[slot] and abs(other - slot) <= window]


def test_the_mask_grows_with_the_window_and_not_with_the_row() -> None:
    positions = torch.arange(1000)
    assert block_mask(positions, 64).shape == (16, 1, 64, 192)
    assert block_mask(positions, 64).any(-1).all()  # what fills the last block sees something too


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_off_by_its_rounding(dtype: torch.dtype) -> None:
    _, positions = numbers_and_positions([[30, 20]])
    torch.manual_seed(0)
    parts = torch.randn(3, 50, HEADS, SIZE).to(dtype)
    mask = block_mask(positions, 8)
    exact = in_blocks(*parts.float(), mask, 0.0)
    half = in_blocks(*parts, added_to_scores(mask, dtype), 0.0)
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), exact, atol=4 * torch.finfo(dtype).eps, rtol=4 * torch.finfo(dtype).eps)


def test_dropout_drops_weights() -> None:
    _, positions = numbers_and_positions([[30, 20]])
    parts = torch.ones(3, 50, HEADS, SIZE)
    mask = block_mask(positions, 8)
    assert not in_blocks(*parts, mask, 1.0).any()
    torch.manual_seed(0)
    dropped = in_blocks(*parts, mask, 0.5)
    assert len(dropped.unique()) > 2  # with equal values each output is the sum of what is left of its weights
    assert 0.8 < float(dropped.mean()) < 1.2
