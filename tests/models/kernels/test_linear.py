"""oneDNN's products: forward and backward beside torch's own, and what it does not take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from maskloom.models.kernels import linear

pytestmark = pytest.mark.skipif(not linear.is_available(), reason="this build of torch has no oneDNN")


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [(64, 48, 32), (7, 5, 3), (1, 32, 301)], ids=str)
def test_results_and_gradients_are_those_of_the_reference(shape: tuple[int, int, int], with_bias: bool) -> None:
    slots, inputs, outputs = shape
    torch.manual_seed(0)
    exact = [torch.randn(size, dtype=torch.float64) for size in ((slots, inputs), (outputs, inputs), (outputs,))]
    upstream = torch.randn(slots, outputs, dtype=torch.float64)
    found = {}
    for form, dtype in ((linear.reference, torch.float64), (linear.fused, torch.float32)):
        given = [value.to(dtype, copy=True).requires_grad_() for value in (exact if with_bias else exact[:2])]
        result = form(*given)
        result.backward(upstream.to(dtype))
        found[dtype] = [result, *(value.grad for value in given)]
    for ours, wanted in zip(found[torch.float32], found[torch.float64], strict=True):
        assert ours is not None and wanted is not None
        # A sum of n products is off by at most about n roundings of its terms.
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-4, atol=2**-24 * max(shape) * 10)


def test_the_input_needs_no_gradient() -> None:
    weight = torch.randn(3, 4, requires_grad=True)
    linear.fused(torch.randn(2, 4), weight).sum().backward()
    assert weight.grad is not None


def test_the_same_twice_is_the_same_bits() -> None:
    hidden, weight, bias = torch.randn(256, 64), torch.randn(96, 64), torch.randn(96)
    assert torch.equal(linear.fused(hidden, weight, bias), linear.fused(hidden, weight, bias))


def test_other_dtypes_are_torchs_own() -> None:
    hidden, weight = torch.randn(8, 4, dtype=torch.bfloat16), torch.randn(3, 4, dtype=torch.bfloat16)
    assert torch.equal(linear.fused(hidden, weight), linear.reference(hidden, weight))


@pytest.mark.parametrize(
    ("vendor", "flags", "is_faster"),
    [("AuthenticAMD", "avx2 avx512f", True), ("AuthenticAMD", "avx2", False), ("GenuineIntel", "avx2 avx512f", False)],
)
def test_it_is_known_to_be_faster_on_amds_processors_alone(
    vendor: str, flags: str, is_faster: bool, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text(f"vendor_id\t: {vendor}\nflags\t\t: fpu {flags}\n")
    assert linear.is_faster(tmp_path / "cpuinfo") == is_faster
    assert not linear.is_faster(tmp_path / "none")
