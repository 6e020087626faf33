"""The gated linear unit: each form beside the reference, forward and backward."""

from __future__ import annotations

import pytest
import torch

from maskloom.models.kernels import KERNELS, gelu, glu
from maskloom.models.layers import gated


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 2), (37, 10), (0, 4)], ids=str)
@pytest.mark.parametrize("form", [glu.fused, glu.compiled])
def test_results_and_gradients_are_those_of_the_reference(
    form: object, shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(form)
    monkeypatch.setattr(glu, "CPU_BLOCK_BYTES", 5 * shape[1] * dtype.itemsize)  # several blocks, and a part of one
    torch.manual_seed(0)
    both, upstream = (3 * torch.randn(shape)).to(dtype), torch.randn(shape[0], shape[1] // 2).to(dtype)
    found = []
    for each in (glu.reference, form):
        given = both.clone().requires_grad_()
        product = each(given)
        found.append([product, *torch.autograd.grad(product, given, upstream)])
    for ours, wanted in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, wanted)


def test_it_keeps_what_the_product_gave_alone() -> None:
    kept: list[torch.Tensor] = []
    both = torch.randn(8, 12, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved) or saved, lambda saved: saved):
        glu.fused(both)
    assert [saved.data_ptr() for saved in kept] == [both.data_ptr()]


@pytest.mark.parametrize("kernels", KERNELS)
def test_other_activations_are_multiplied_as_they_are(kernels: str) -> None:
    both, row = torch.randn(8, 12), KERNELS[kernels]
    assert torch.equal(gated(both, torch.relu, row), torch.relu(both[:, :6]) * both[:, 6:])
    torch.testing.assert_close(gated(both, row.gelu, row), gelu.reference(both[:, :6]) * both[:, 6:])
