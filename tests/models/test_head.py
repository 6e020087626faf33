"""The padded projection to the vocabulary: padding is never likely, with and without a bias."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from maskloom.models.head import PaddedDecoder


@pytest.mark.parametrize("bias", [True, False])
def test_padding_takes_no_part(bias: bool) -> None:
    decoder = nn.Linear(8, 50, bias=bias)
    hidden = torch.randn(3, 8, requires_grad=True)
    expected = decoder(hidden)
    decoder.__class__ = PaddedDecoder
    assert torch.equal(decoder(hidden), expected)  # a CPU needs none
    decoder.alignment = 64
    padded = decoder(hidden)
    assert padded.shape == (3, 64)
    torch.testing.assert_close(padded[:, :50], expected)
    assert torch.equal(padded[:, 50:], torch.full((3, 14), -torch.inf))
    torch.testing.assert_close(padded.softmax(-1)[:, :50], expected.softmax(-1))
    padded.logsumexp(-1).sum().backward()
    assert torch.isfinite(decoder.weight.grad).all()
    assert torch.isfinite(hidden.grad).all()
