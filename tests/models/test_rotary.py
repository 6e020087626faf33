"""The table of angles, from the formula and beside Hugging Face's."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import ModernBertConfig
from transformers.models.modernbert.modeling_modernbert import ModernBertRotaryEmbedding

from maskloom.models.rotary import rope_faults, rotary_table


def test_the_angle_of_a_pair_is_the_position_times_its_frequency() -> None:
    cos, sin = rotary_table(torch.tensor([0, 1, 7]), head_size=8, theta=100.0)
    assert cos.shape == sin.shape == (3, 1, 4)
    for row, position in enumerate((0, 1, 7)):
        for pair in range(4):
            angle = position / 100.0 ** (2 * pair / 8)
            assert math.isclose(float(cos[row, 0, pair]), math.cos(angle), abs_tol=1e-6)
            assert math.isclose(float(sin[row, 0, pair]), math.sin(angle), abs_tol=1e-6)


def test_it_is_hugging_faces() -> None:
    config = ModernBertConfig(hidden_size=64, num_attention_heads=2)
    theirs = ModernBertRotaryEmbedding(config)
    positions = torch.arange(8192)
    for kind, theta in (("full_attention", 160_000.0), ("sliding_attention", 10_000.0)):
        cos, sin = theirs(torch.zeros(1, 1, 32), positions[None], kind)
        ours = rotary_table(positions, 32, theta)
        torch.testing.assert_close(torch.cat((ours.cos, ours.cos), -1)[:, 0], cos[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(torch.cat((ours.sin, ours.sin), -1)[:, 0], sin[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"rope_type": "default", "rope_theta": 100}, None),
        ({}, None),
        ([], "rope is [], which is not an object"),
        ({"rope_type": "yarn"}, "rope has 'rope_type': 'yarn' (computed: 'default')"),
        ({"factor": 2.0}, "rope has 'factor': 2.0 (computed: no such key)"),
        ({"rope_theta": True}, "rope.rope_theta is True, which is not a number between 0 and 1e+12"),
        ({"rope_theta": 7.0}, "theta is 100.0, and rope.rope_theta is 7.0: remove the wrong one"),
    ],
)
def test_what_is_another_rotation(given: object, fault: str | None) -> None:
    assert list(rope_faults(given, "rope", {"theta": 100.0}, "theta")) == ([fault] if fault else [])
