"""What is set for the whole process before CUDA is."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from torch._inductor import config as inductor

from maskloom.train.engine.numerics import CUBLAS_WORKSPACE, numerics_title, settle_numerics

MATMUL = torch.backends.cuda.matmul


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(CUBLAS_WORKSPACE, "")
    monkeypatch.delenv(CUBLAS_WORKSPACE)
    with inductor.patch(deterministic=False):
        yield
    settle_numerics(False)
    os.environ.pop(CUBLAS_WORKSPACE, None)


def test_products_in_half_precision_are_summed_in_fp32() -> None:
    MATMUL.allow_bf16_reduced_precision_reduction = MATMUL.allow_fp16_reduced_precision_reduction = True
    settle_numerics(False)
    assert not MATMUL.allow_bf16_reduced_precision_reduction
    assert not MATMUL.allow_fp16_reduced_precision_reduction
    # Split over the summed dimension they stay: the parts are in fp32.
    assert MATMUL.allow_bf16_reduced_precision_reduction_split_k
    assert not torch.are_deterministic_algorithms_enabled()
    assert CUBLAS_WORKSPACE not in os.environ


def test_deterministic_reaches_torch_cublas_cudnn_and_inductor() -> None:
    settle_numerics(True)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.deterministic
    assert inductor.deterministic
    assert os.environ[CUBLAS_WORKSPACE] == ":4096:8"
    assert not torch.empty(1 << 16).isnan().all()  # memory is not filled


def test_a_workspace_that_somebody_chose_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUBLAS_WORKSPACE, ":16:8")
    settle_numerics(True)
    assert os.environ[CUBLAS_WORKSPACE] == ":16:8"


def test_what_the_start_says_of_it() -> None:
    assert numerics_title("cuda", "bf16") == ""
    assert numerics_title("cuda", "fp32") == "products in fp32, "
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert numerics_title("cuda", "fp32") == "products in TF32, "
    finally:
        torch.set_float32_matmul_precision(before)
    settle_numerics(True)
    assert numerics_title("cuda", "bf16") == "deterministic, "
    assert numerics_title("cpu", "fp32") == ""
