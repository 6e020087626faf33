"""GPUs, as nvidia-smi tells of them and as they multiply."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from maskloom.launch.doctor.facts import Gpu
from maskloom.launch.doctor.look.gpus import GPU_FIELDS, gpu_of, look_at_gpus, multiply
from maskloom.nvidia_smi import ask_nvidia_smi


def test_rows_of_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\ncase $1 in\n"
        "--query-gpu=*) echo 'NVIDIA H100 80GB HBM3, 80000, 81559, 2, 0x0000000000000048, GPU-1';\n"
        "  echo 'Tesla P4, 7000, 7600, [N/A], 0x0000000000000001, GPU-2';;\n"
        "*) echo 'unknown column' >&2; exit 2;;\nesac\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    first, second = ask_nvidia_smi("--query-gpu", list(GPU_FIELDS.values()), list(GPU_FIELDS))
    assert gpu_of("H100", first, ["python (process 7)"], None) == Gpu(
        name="H100",
        memory_free_bytes=80000 << 20,
        memory_total_bytes=81559 << 20,
        uncorrected_errors=2,
        slowed_by=("hardware slowdown", "hardware thermal"),
        processes=("python (process 7)",),
    )
    assert gpu_of("P4", second, [], "wrong") == Gpu("P4", 7000 << 20, 7600 << 20, fault="wrong")  # idle is no fault
    assert ask_nvidia_smi("--query-compute-apps", ["pid"], ["pid"]) == []
    assert gpu_of("H100", {}, [], None) == Gpu("H100")


@pytest.mark.gpu
def test_products_on_a_gpu_are_exact() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    assert multiply(0) is None
    assert all(gpu.fault is None for gpu in look_at_gpus(torch.cuda.device_count()))
