"""`rehearse.fused_adam`: where CUDA is, and what a wheel holds."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from rehearse import fused_adam

DRY_RUN = """#$ _NVVM_BRANCH_=nvvm
#$ _HERE_=/opt/cuda-13.0/bin
#$ TOP=/opt/cuda-13.0/bin/..
#$ CICC_PATH=/opt/cuda-13.0/bin/../nvvm/bin
"""


def test_the_toolkit_is_where_nvcc_says() -> None:
    assert fused_adam.read_home(DRY_RUN) == Path("/opt/cuda-13.0")


def test_a_wrapper_of_nvcc_is_seen_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, wrapper = tmp_path / "cuda/bin/nvcc", tmp_path / "bin/nvcc"
    for program, text in ((real, f'echo "#$ TOP={tmp_path}/cuda/bin/.." >&2'), (wrapper, f'exec {real} "$@"')):
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:/usr/bin:/bin")
    assert fused_adam.cuda_home() == tmp_path / "cuda"


def test_without_nvcc_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="nvcc is not on the PATH"):
        fused_adam.cuda_home()


@pytest.mark.parametrize(
    ("listing", "found"),
    [
        (
            "ELF file    1: fused_adam_op.multi_tensor_adam.sm_90.cubin\n",
            ["fused_adam_op.multi_tensor_adam.sm_90.cubin"],
        ),
        ("ELF file    1: fused_adam_op.multi_tensor_adam.sm_80.cubin\n", []),
        ("", []),
    ],
)
def test_cubins_are_those_for_a_hopper(tmp_path: Path, listing: str, found: list[str]) -> None:
    wheel, tool = tmp_path / "deepspeed-0.whl", tmp_path / "cuobjdump"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("deepspeed/ops/adam/fused_adam_op.cpython-312-x86_64-linux-gnu.so", "")
    tool.write_text(f"#!/bin/sh\nprintf '{listing.rstrip()}\\n'\n")
    tool.chmod(0o755)
    assert fused_adam.cubins(wheel, tmp_path, str(tool)) == found


def test_a_wheel_without_the_operator_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "deepspeed-0.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("deepspeed/__init__.py", "")
    with pytest.raises(RuntimeError, match="no fused_adam_op"):
        fused_adam.cubins(wheel, tmp_path, "cuobjdump")
