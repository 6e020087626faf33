"""Rotation: both forms against complex numbers, and each other's gradients."""

from __future__ import annotations

import pytest
import torch

from maskloom.models.kernels import rotate
from maskloom.models.rotary import rotary_table

SLOTS, HEADS, SIZE = 11, 3, 8


@pytest.mark.parametrize("form", [rotate.reference, rotate.fused])
def test_a_pair_is_a_complex_number_that_is_turned(form: object) -> None:
    assert callable(form)
    qkv, rotary = torch.randn(SLOTS, 3, HEADS, SIZE), rotary_table(torch.arange(SLOTS) * 700, SIZE, 10_000.0)
    turn = torch.complex(rotary.cos, rotary.sin)
    *turned, value = form(qkv, *rotary)
    for heads, found in zip(qkv.unbind(1), turned, strict=False):
        expected = torch.complex(*heads.chunk(2, -1)) * turn
        torch.testing.assert_close(found, torch.cat((expected.real, expected.imag), -1), atol=1e-6, rtol=1e-6)
    assert torch.equal(value, qkv[:, 2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fused_is_the_reference_forward_and_backward(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    qkv, rotary = torch.randn(SLOTS, 3, HEADS, SIZE).to(dtype), rotary_table(torch.arange(SLOTS), SIZE, 10_000.0)
    upstream = torch.randn(3, SLOTS, HEADS, SIZE).to(dtype)
    found = []
    for form in (rotate.reference, rotate.fused):
        given = qkv.clone().requires_grad_()
        parts = form(given, *rotary)
        assert all(part.dtype == dtype for part in parts)
        (gradient,) = torch.autograd.grad(parts, given, tuple(upstream))
        found.append([*parts, gradient])
    unit = torch.finfo(dtype).eps  # one rounding of numbers up to 4 in either form
    for ours, wanted in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, wanted, atol=4 * unit, rtol=unit)


@pytest.mark.parametrize("key_heads", [1, HEADS])
@pytest.mark.parametrize("form", [rotate.reference, rotate.fused])
def test_fewer_heads_of_keys_are_turned_like_the_first_of_as_many(form: object, key_heads: int) -> None:
    """Values, and the gradient of what is turned."""
    assert callable(form)
    rotary, upstream = rotary_table(torch.arange(SLOTS), SIZE, 10_000.0), torch.randn(3, SLOTS, HEADS, SIZE)
    qkv = torch.randn(SLOTS, 3, HEADS, SIZE, requires_grad=True)
    narrow = torch.cat((qkv[:, 0], qkv[:, 1, :key_heads], qkv[:, 2, :key_heads]), 1).detach().requires_grad_()
    heads = (HEADS, key_heads, key_heads)
    expected, found = form(qkv, *rotary), form(narrow, *rotary, key_heads)
    for part, whole, count in zip(found, expected, heads, strict=True):
        assert torch.equal(part, whole[:, :count])
    (wanted,) = torch.autograd.grad(expected, qkv, tuple(upstream))
    (gradient,) = torch.autograd.grad(found, narrow, tuple(up[:, :n] for up, n in zip(upstream, heads, strict=True)))
    assert torch.equal(gradient, torch.cat([wanted[:, part, :count] for part, count in enumerate(heads)], 1))


def test_a_slot_at_position_0_stays() -> None:
    qkv = torch.randn(1, 3, HEADS, SIZE)
    assert torch.equal(torch.stack(rotate.fused(qkv, *rotary_table(torch.tensor([0]), SIZE, 100.0)), 1), qkv)
