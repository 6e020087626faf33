"""The CUDA toolkit, among fake trees of folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from torch.utils import cpp_extension

from maskloom.train.engine import cuda_home
from maskloom.train.engine.cuda_home import (
    find_cuda_home,
    is_toolkit,
    lacking_headers,
    settle_cuda_home,
    version_of,
)


def make_nvcc(folder: Path, text: str = "\x7fELF") -> Path:
    """`folder`/bin/nvcc; returns its folder."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "nvcc").write_text(text)
    (folder / "bin" / "nvcc").chmod(0o755)
    return folder / "bin"


def make_toolkit(home: Path, version: int = 13000, include: str = "include", *headers: str) -> Path:
    make_nvcc(home)
    (home / include).mkdir(parents=True)
    (home / include / "cuda.h").write_text(f"#pragma once\n#define CUDA_VERSION {version}\n")
    for header in ("cuda_runtime.h", *headers):
        (home / include / header).touch()
    return home


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing of CUDA on the PATH, in the usual places or among the packages."""
    monkeypatch.setattr(cuda_home, "USUAL", tmp_path / "usual")
    monkeypatch.setattr(cuda_home, "PACKAGES", tmp_path / "nvidia")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", "/usr/local/wrong")
    monkeypatch.setenv("PATH", "/usr/bin-of-nothing")
    for name in ("CUDA_HOME", "CUDA_PATH", "CPATH"):
        monkeypatch.setenv(name, "")  # so that what is set is put back
    return tmp_path


def first_on_path(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    monkeypatch.setenv("PATH", os.pathsep.join(map(str, folders)))


def test_without_nvcc_there_is_none() -> None:
    assert find_cuda_home("13.0") is None
    assert settle_cuda_home() is None
    assert cpp_extension.CUDA_HOME == "/usr/local/wrong"


def test_the_folder_above_nvcc_if_it_is_a_toolkit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = make_toolkit(root / "cuda")
    first_on_path(monkeypatch, home / "bin")
    assert find_cuda_home("13.0") == home


@pytest.mark.parametrize(
    "script",
    ['#!/bin/sh\nexec HOME/bin/nvcc "$@"\n', '#!/bin/bash\nexport X=1\nexec ccache "HOME/bin/nvcc" "$@"\n'],
)
def test_a_wrapper_that_stands_first_is_followed(script: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would take `root/local`, which has a bin/nvcc and no headers."""
    home = make_toolkit(root / "opt" / "cuda-13.0")
    first_on_path(monkeypatch, make_nvcc(root / "local", script.replace("HOME", str(home))))
    assert find_cuda_home("13.0") == home


def test_a_wrapper_that_does_not_say_what_it_runs_is_skipped(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper = make_nvcc(root / "local", '#!/bin/sh\nexec "$REAL_NVCC" "$@"\n')
    first_on_path(monkeypatch, wrapper)
    assert find_cuda_home("13.0") is None
    later = make_toolkit(root / "later")
    first_on_path(monkeypatch, wrapper, later / "bin")
    assert find_cuda_home("13.0") == later


def test_a_link_is_followed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = make_toolkit(root / "opt" / "cuda")
    (root / "local" / "bin").mkdir(parents=True)
    (root / "local" / "bin" / "nvcc").symlink_to(home / "bin" / "nvcc")
    first_on_path(monkeypatch, root / "local" / "bin")
    assert find_cuda_home("13.0") == home


def test_the_usual_places_and_the_packages_come_last(root: Path) -> None:
    package = make_toolkit(root / "nvidia" / "cu13")
    assert find_cuda_home("13.0") == package
    older = make_toolkit(root / "usual" / "cuda-12.8", 12080)
    assert find_cuda_home("12.9") == older
    newer = make_toolkit(root / "usual" / "cuda-13.0")
    assert find_cuda_home("13.0") == newer


def test_the_version_of_torch_goes_before_the_order(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_toolkit(root / "modules" / "cuda", 12040)
    second = make_toolkit(root / "usual" / "cuda-13.0", 13000)
    first_on_path(monkeypatch, first / "bin")
    assert [find_cuda_home(version) for version in ("13.0", "12.4", "11.8")] == [second, first, first]


def test_conda_has_its_headers_below_targets(root: Path) -> None:
    home = make_toolkit(root / "env", 12060, "targets/x86_64-linux/include")
    assert is_toolkit(home)
    assert version_of(home) == "12.6"


def test_a_folder_with_one_of_both_is_not_a_toolkit(root: Path) -> None:
    assert not is_toolkit(make_nvcc(root / "wrapper").parent)
    headers = make_toolkit(root / "headers")
    (headers / "bin" / "nvcc").unlink()
    assert not is_toolkit(headers)
    assert version_of(root / "nothing") is None


def test_what_the_environment_says_decides(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first_on_path(monkeypatch, make_toolkit(root / "cuda") / "bin")
    monkeypatch.setenv("CUDA_HOME", str(root / "mine"))
    assert settle_cuda_home() == root / "mine"
    assert cpp_extension.CUDA_HOME == os.environ["CUDA_HOME"] == str(root / "mine")


def test_headers_that_the_toolkit_lacks_are_those_of_torchs_packages(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, header in (("cu13", "cusparse.h"), ("cu13", "cublas_v2.h"), ("cublas", "cublasLt.h")):
        (root / "nvidia" / folder / "include").mkdir(parents=True, exist_ok=True)
        (root / "nvidia" / folder / "include" / header).touch()
    home = make_toolkit(root / "cuda", 13000, "include", "cublas_v2.h")
    first_on_path(monkeypatch, home / "bin")
    folders = [root / "nvidia" / "cublas" / "include", root / "nvidia" / "cu13" / "include"]
    assert lacking_headers(home) == folders
    monkeypatch.setenv("CPATH", "/before")
    for _ in range(2):  # a second time adds nothing
        assert settle_cuda_home() == home
        assert os.environ["CPATH"] == f"/before:{folders[0]}:{folders[1]}"


def test_a_whole_toolkit_changes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = make_toolkit(root / "cuda", 13000, "include", *cuda_home.INCLUDED_BY_TORCH)
    first_on_path(monkeypatch, home / "bin")
    assert settle_cuda_home() == home
    assert os.environ["CPATH"] == ""


@pytest.mark.parametrize(
    "script",
    ["#!/bin/sh\n/a\0b/bin/nvcc\n", f"#!/bin/sh\n/{'x' * 5000}/bin/nvcc\n", f"#!/bin/sh\n{'/bin/nvcca' * 6000}\n"],
)
def test_odd_wrappers_and_places_lead_nowhere(script: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first_on_path(monkeypatch, root / ("y" * 300), make_nvcc(root / "local", script), Path("/" + "z" * 5000))
    assert find_cuda_home("13.0") is None
    later = make_toolkit(root / "usual" / "cuda-13.0", int("9" * 5))
    (later / "include" / "cuda.h").write_text(f"#define CUDA_VERSION {'9' * 5000}\n")
    assert version_of(later) is None
    assert find_cuda_home("13.0") == later
    monkeypatch.setenv("CUDA_HOME", "/" + "w" * 5000)
    assert settle_cuda_home() == Path("/" + "w" * 5000)  # what the user says decides; the build then fails
