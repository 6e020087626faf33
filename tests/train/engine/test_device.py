"""The device of a rank: what it is, how torch computes on it, which kernels it has, and what the start warns of."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._inductor import config as inductor

from maskloom.config import Engine
from maskloom.distributed import World
from maskloom.errors import UserError
from maskloom.train.engine import device as module
from maskloom.train.engine.device import (
    CUBLAS_WORKSPACE,
    device_of,
    notes_on_device,
    numerics_title,
    resolve_kernels,
    settle_numerics,
    unusable_gpus,
    why_not_compiled,
)

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


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on the PATH: empty. Neither CC nor CXX is set."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path


def put(tools: Path, name: str) -> None:
    (tools / name).write_text("#!/bin/sh\n")
    (tools / name).chmod(0o755)


@pytest.fixture
def on_gpu(tools: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hopper with all that Triton needs, Triton included."""
    put(tools, "gcc")
    headers = tools / "include"
    headers.mkdir()
    (headers / "Python.h").touch()
    monkeypatch.setattr(module, "get_accelerator", lambda: SimpleNamespace(device_name=lambda: "cuda"))
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("sysconfig.get_path", lambda name, scheme: str(headers))
    return tools


@pytest.mark.parametrize(
    ("hidden_size", "is_faster", "kernels"), [(768, True, "onednn"), (768, False, "eager"), (128, True, "eager")]
)
def test_auto_on_a_cpu(hidden_size: int, is_faster: bool, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.linear, "is_faster", lambda: is_faster)
    assert resolve_kernels("auto", hidden_size) == kernels


def test_auto_compiles_on_a_gpu_and_not_on_a_cpu(on_gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_kernels("auto", 768) == resolve_kernels("compile", 768) == "compile"
    assert resolve_kernels("eager", 768) == "eager"
    with pytest.raises(UserError, match="onednn is for CPUs, and this run has GPUs"):
        resolve_kernels("onednn", 768)
    monkeypatch.undo()
    assert resolve_kernels("auto", 768) in ("eager", "onednn")
    assert resolve_kernels("onednn", 768) == "onednn"
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    with pytest.raises(UserError, match=r"this build of torch has no oneDNN; set engine\.kernels=eager"):
        resolve_kernels("onednn", 768)


def lose_triton(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


def lose_compiler(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tools / "gcc").unlink()


def name_no_compiler(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "icc")


def lose_headers(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tools / "include" / "Python.h").unlink()


def be_old(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (6, 1))


@pytest.mark.parametrize(
    ("lose", "said"),
    [
        (lose_triton, "Triton is not installed.*: install it with pip install triton"),
        (lose_compiler, "there is no C compiler, which Triton needs: install gcc"),
        (name_no_compiler, "CC=icc in the environment names no program"),
        (lose_headers, r"Python's headers are missing \(.*/Python.h\)"),
        (be_old, r"compute capability 7.0 and above, and this one has 6\.1"),
    ],
)
def test_what_is_missing_turns_auto_to_eager_and_ends_what_asked_for_compile(
    lose: object, said: str, on_gpu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert why_not_compiled() is None
    assert callable(lose)
    lose(on_gpu, monkeypatch)
    assert resolve_kernels("auto", 768) == "eager"
    with pytest.raises(UserError, match=f"engine.kernels compile cannot be had here: .*{said}.*engine.kernels=eager"):
        resolve_kernels("compile", 768)


def test_clang_will_do(on_gpu: Path) -> None:
    (on_gpu / "gcc").rename(on_gpu / "clang")
    assert resolve_kernels("auto", 768) == "compile"


def test_a_cpu_needs_a_compiler_of_cpp(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"there is no C\+\+ compiler g\+\+: install g\+\+, or set CXX"):
        resolve_kernels("compile", 768)
    put(tools, "c++-14")
    monkeypatch.setenv("CXX", "c++-14")
    assert resolve_kernels("compile", 768) == "compile"


@pytest.fixture
def shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put an nvidia-smi on the PATH that shows two GPUs with a driver, to a torch that sees none."""
    for name in ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", None)
    monkeypatch.setattr("torch.__version__", "2.13.0+cpu")
    monkeypatch.setattr(module, "get_accelerator", lambda: SimpleNamespace(device_name=lambda: "cpu"))

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
    monkeypatch.setattr(module, "get_accelerator", lambda: SimpleNamespace(device_name=lambda: "cuda"))
    monkeypatch.setattr(module, "why_not_compiled", lambda: "there is no C compiler")
    assert list(notes_on_device(Engine())) == [
        "engine.kernels auto is eager here, which is slower on a GPU: there is no C compiler"
    ]
    assert list(notes_on_device(Engine(kernels="eager"))) == []


class TestMoreRanksThanGpus:
    """Every rank of the machine refuses, also those that would have a GPU: none waits for the others."""

    def test_a_rank_has_the_gpu_of_its_number(self, gpu: None) -> None:
        assert device_of(World(1, 4, local_rank=1, local_size=2)) == torch.device("cuda", 1)
        assert device_of(World(1, 4)) == torch.device("cuda", 0)

    @pytest.mark.parametrize("local_rank", [0, 3])
    def test_both_numbers_and_the_remedy_are_named(
        self, local_rank: int, gpu: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
        said = r"^4 ranks on a machine on which rank 7 sees 2 cuda device\(s\) \(CUDA_VISIBLE_DEVICES=0,1\)"
        with pytest.raises(UserError, match=f"{said}.*--processes 2, slots=2.*--gpus-per-node"):
            device_of(World(7, 8, local_rank, local_size=4))

    def test_a_launcher_that_does_not_say_how_many_ranks_there_are_is_seen_through(
        self, gpu: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        with pytest.raises(UserError, match=r"^3 ranks on a machine on which rank 2 sees 2 cuda device\(s\): each"):
            device_of(World(2, 4, local_rank=2, local_size=1))

    def test_cpus_take_any_number(self) -> None:
        assert device_of(World(7, 8, local_rank=7, local_size=8)) == torch.device("cpu")

    def test_it_is_said_before_the_ranks_meet(self, gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
        from maskloom.train.engine import engine

        def reached(*_: Any, **__: Any) -> None:
            raise AssertionError("DeepSpeed was asked")

        monkeypatch.setattr("deepspeed.init_distributed", reached)
        with pytest.raises(UserError, match="4 ranks on a machine"):
            engine.start_distributed(World(0, 4, local_rank=0, local_size=4))
