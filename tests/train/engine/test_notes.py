"""What the start warns of: GPUs that nvidia-smi shows and torch cannot use."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from maskloom.config import Engine
from maskloom.train.engine import notes
from maskloom.train.engine.notes import notes_on_device, unusable_gpus


@pytest.fixture
def shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put an nvidia-smi on the PATH that shows two GPUs with a driver, to a torch that sees none."""
    for name in ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", None)
    monkeypatch.setattr("torch.__version__", "2.13.0+cpu")
    monkeypatch.setattr(notes, "get_accelerator", lambda: SimpleNamespace(device_name=lambda: "cpu"))

    def put(driver: str) -> None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(
            '#!/bin/sh\n[ "$1" = --query-gpu=name,driver_version ] || exit 2\n'
            f"echo 'NVIDIA H100 80GB HBM3, {driver}'; echo 'NVIDIA H100 80GB HBM3, {driver}'\n"
        )
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return put


def test_a_build_for_cpus_is_said_with_the_command_that_installs_another(shows: Callable[[str], None]) -> None:
    shows("580.65.06")
    (note,) = notes_on_device(Engine())
    pip = f"{sys.executable} -m pip"
    assert note == (
        "nvidia-smi shows 2 GPU(s) (NVIDIA H100 80GB HBM3, driver 580.65.06), and torch 2.13.0+cpu cannot use them: it is not "
        "built for CUDA. The run computes on the CPU. Install one: "
        f"{pip} uninstall --yes torch && {pip} install torch==2.13.0; see docs/install.md"
    )


PIP = f"{sys.executable} -m pip"
USUAL = f"Install one: {PIP} uninstall --yes torch && {PIP} install torch==2.13.0; see docs/install.md"
FOR_CUDA_12 = (
    "Install one for CUDA 12 (GPUs after Hopper need driver 580 or later and the usual build): "
    f"{PIP} uninstall --yes torch && {PIP} install --index-url https://download.pytorch.org/whl/cu126 torch==2.13.0; "
    "see docs/install.md"
)


@pytest.mark.parametrize(
    ("cuda", "driver", "why", "remedy"),
    [
        (None, "580.65.06", "it is not built for CUDA", USUAL),
        (None, "[N/A]", "it is not built for CUDA", USUAL),
        (None, "579.99", "it is not built for CUDA", FOR_CUDA_12),
        (None, "525.60.13", "it is not built for CUDA", FOR_CUDA_12),
        (None, "470.82.01", "it is not built for CUDA", "Update the driver to 525 or later; see docs/install.md"),
        ("13.0", "570.86.10", "it is built for CUDA 13.0, which needs driver 580 or later", FOR_CUDA_12),
        (
            "13.0",
            "470.82.01",
            "it is built for CUDA 13.0, which needs driver 580 or later",
            "Update the driver to 580 or later; see docs/install.md",
        ),
        (
            "12.6",
            "470.82.01",
            "it is built for CUDA 12.6, which needs driver 525 or later",
            "Update the driver to 525 or later; see docs/install.md",
        ),
    ],
)
def test_the_driver_says_which_build_it_can_run(
    cuda: str | None,
    driver: str,
    why: str,
    remedy: str,
    shows: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.version.cuda", cuda)
    shows(driver)
    found = unusable_gpus()
    assert found is not None
    said, advised = found
    assert said.endswith(f"cannot use them: {why}")
    assert advised == remedy


def test_a_later_torch_makes_room_for_one_that_older_drivers_can_run(
    shows: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.version.cuda", "13.2")
    monkeypatch.setattr("torch.__version__", "2.15.1+cu132")
    shows("550.54.15")
    assert "/whl/cu126 torch==2.13.0; see" in str(unusable_gpus())


def test_what_else_keeps_torch_from_it_is_in_torchs_words(
    shows: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise RuntimeError("Unexpected error from cudaGetDeviceCount().\nError 803: unsupported driver combination")

    monkeypatch.setattr("torch.version.cuda", "12.8")
    monkeypatch.setattr("torch.cuda.init", refuse)
    shows("550.54.15")
    (note,) = notes_on_device(Engine())
    assert "Error 803: unsupported driver combination. The run computes" in note
    assert "\n" not in note


@pytest.mark.parametrize(
    ("name", "value"), [("CUDA_VISIBLE_DEVICES", ""), ("CUDA_VISIBLE_DEVICES", "-1"), ("DS_ACCELERATOR", "cpu")]
)
def test_gpus_that_a_user_hides_are_nobodys_concern(
    name: str, value: str, shows: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    shows("580.65.06")
    monkeypatch.setenv(name, value)
    assert list(notes_on_device(Engine())) == []


def test_nothing_is_said_without_gpus(shows: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert list(notes_on_device(Engine())) == []


def test_auto_that_cannot_compile_is_said_and_eager_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notes, "get_accelerator", lambda: SimpleNamespace(device_name=lambda: "cuda"))
    monkeypatch.setattr(notes, "why_not_compiled", lambda: "there is no C compiler")
    assert list(notes_on_device(Engine())) == [
        "engine.kernels auto is eager here, which is slower on a GPU: there is no C compiler"
    ]
    assert list(notes_on_device(Engine(kernels="eager"))) == []
