"""An accelerator for tests that ask what would be on a GPU."""

from __future__ import annotations

import pytest

from maskloom.train.engine import configuration, device


class Gpu:
    """An accelerator as far as the configuration looks at it."""

    def device_name(self) -> str:
        return "cuda"

    def is_fp16_supported(self) -> bool:
        return True

    is_bf16_supported = is_fp16_supported

    def device_count(self) -> int:
        return 2


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (configuration, device):
        monkeypatch.setattr(each, "get_accelerator", Gpu)
