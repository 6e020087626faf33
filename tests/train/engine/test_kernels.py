"""What `engine.kernels: auto` becomes, and what is said where torch.compile lacks something."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from maskloom.errors import UserError
from maskloom.train.engine import kernels
from maskloom.train.engine.kernels import resolve_kernels, why_not_compiled


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
    monkeypatch.setattr(kernels, "get_accelerator", lambda: SimpleNamespace(device_name=lambda: "cuda"))
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("sysconfig.get_path", lambda name, scheme: str(headers))
    return tools


def test_auto_compiles_on_a_gpu_and_not_on_a_cpu(on_gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_kernels("auto") == resolve_kernels("compile") == "compile"
    assert resolve_kernels("eager") == "eager"
    monkeypatch.undo()
    assert resolve_kernels("auto") == "eager"


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
    assert resolve_kernels("auto") == "eager"
    with pytest.raises(UserError, match=f"engine.kernels compile cannot be had here: .*{said}.*engine.kernels=eager"):
        resolve_kernels("compile")


def test_clang_will_do(on_gpu: Path) -> None:
    (on_gpu / "gcc").rename(on_gpu / "clang")
    assert resolve_kernels("auto") == "compile"


def test_a_cpu_needs_a_compiler_of_cpp(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"there is no C\+\+ compiler g\+\+: install g\+\+, or set CXX"):
        resolve_kernels("compile")
    put(tools, "c++-14")
    monkeypatch.setenv("CXX", "c++-14")
    assert resolve_kernels("compile") == "compile"
