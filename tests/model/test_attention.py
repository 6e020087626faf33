"""`attend` against softmax attention written out for one piece at a time."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.model.attention import attend, choose_flash_kernel, needs_mask, piece_mask

HEADS, SIZE = 2, 8


def rows_of_pieces(lengths: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """`pieces` [T] and `cu_seqlens` [N + 1] of rows whose pieces have these lengths."""
    flat = [length for row in lengths for length in row]
    pieces = [number for row in lengths for number, length in enumerate(row) for _ in range(length)]
    ends = torch.tensor([0, *flat]).cumsum(0)
    return torch.tensor(pieces, dtype=torch.int32), ends.to(torch.int32)


@st.composite
def rows(draw: st.DrawFn) -> list[list[int]]:
    """One to three rows of twelve slots, each cut into pieces."""
    result = []
    for _ in range(draw(st.integers(1, 3))):
        cuts = sorted(draw(st.sets(st.integers(1, 11), max_size=4)))
        result.append([end - start for start, end in zip([0, *cuts], [*cuts, 12], strict=True)])
    return result


def test_piece_mask_joins_the_slots_of_a_piece_and_no_others() -> None:
    pieces, _ = rows_of_pieces([[2, 1], [1, 2]])
    first = [[True, True, False], [True, True, False], [False, False, True]]
    second = [[True, False, False], [False, True, True], [False, True, True]]
    assert piece_mask(pieces, 3).tolist() == [[first], [second]]


@settings(max_examples=25, deadline=None)
@given(lengths=rows(), seed=st.integers(0, 2**16))
def test_attend_is_attention_over_each_piece_alone(lengths: list[list[int]], seed: int) -> None:
    pieces, cu_seqlens = rows_of_pieces(lengths)
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, len(pieces), HEADS, SIZE, generator=generator)
    result = attend(query, key, value, cu_seqlens, piece_mask(pieces, 12), 12, dropout=0.0)
    assert result.shape == query.shape
    bounds = cu_seqlens.tolist()
    for start, end in itertools.pairwise(bounds):
        scores = torch.einsum("qhd,khd->hqk", query[start:end], key[start:end]) / math.sqrt(SIZE)
        expected = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value[start:end])
        torch.testing.assert_close(result[start:end], expected, atol=1e-5, rtol=0)


def test_dropout_of_one_drops_every_weight() -> None:
    pieces, cu_seqlens = rows_of_pieces([[5, 7]])
    query, key, value = torch.randn(3, 12, HEADS, SIZE)
    assert not attend(query, key, value, cu_seqlens, piece_mask(pieces, 12), 12, dropout=1.0).any()


@pytest.mark.parametrize(
    ("device", "dtype", "dropout", "expected"),
    [
        ("cpu", torch.float32, 0.0, True),
        ("cpu", torch.bfloat16, 0.0, True),
        ("cuda", torch.float32, 0.0, True),
        ("cuda", torch.bfloat16, 0.1, True),
        ("cuda", torch.bfloat16, 0.0, False),
        ("cuda", torch.float16, 0.0, False),
    ],
)
def test_only_half_precision_on_cuda_without_dropout_goes_without_a_mask(
    device: str, dtype: torch.dtype, dropout: float, expected: bool
) -> None:
    assert needs_mask(torch.device(device), dtype, dropout) is expected


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_kernel_over_pieces_is_the_masked_attention(dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device: the variable-length kernel runs nowhere else")
    pieces, cu_seqlens = rows_of_pieces([[5, 7, 20], [32]])
    parts = [torch.randn(64, HEADS, 64, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3)]
    mask = piece_mask(pieces.cuda(), 32)
    masked = attend(*parts, cu_seqlens.cuda(), mask, 32, 0.0)
    expected = torch.autograd.grad(masked.float().square().sum(), parts)
    kernel = attend(*parts, cu_seqlens.cuda(), None, 32, 0.0)
    gradients = torch.autograd.grad(kernel.float().square().sum(), parts)
    unit = torch.finfo(dtype).eps  # each path rounds its own intermediate results a few times
    torch.testing.assert_close(kernel, masked, atol=8 * unit, rtol=8 * unit)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=16 * unit * float(theirs.abs().max()), rtol=0)


def test_flash_attention_3_is_taken_where_it_is_installed_on_a_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    activated: list[str] = []
    monkeypatch.setattr("torch.nn.attention.activate_flash_attention_impl", activated.append)
    names = {}
    for installed in (False, True):
        for capability in ((8, 0), (9, 0)):
            monkeypatch.setattr("importlib.util.find_spec", lambda name, found=installed: found or None)
            monkeypatch.setattr("torch.cuda.get_device_capability", lambda device, found=capability: found)
            names[installed, capability] = choose_flash_kernel(torch.device("cuda"))
    assert names.pop((True, (9, 0))) == "FlashAttention 3"
    assert activated == ["FA3"]
    assert set(names.values()) == {"FlashAttention 2"}
    assert choose_flash_kernel(torch.device("cpu")) == "SDPA"
