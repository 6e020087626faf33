"""`rehearse.fake_gpu`: what is preloaded; the rest of it needs torch's CUDA build (`make rehearse`)."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
from rehearse import fake_gpu


def test_what_is_preloaded_is_a_driver_with_one_gpu(tmp_path: Path) -> None:
    environment = fake_gpu.environment(tmp_path)
    assert Path(environment["LD_PRELOAD"]) == tmp_path / "libcuda.so.1"  # the name that torch's libraries ask for
    assert {Path(environment[name]).parent for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")} == {tmp_path}
    library, count = ctypes.CDLL(environment["LD_PRELOAD"]), ctypes.c_int(7)
    assert library.cudaGetDeviceCount(ctypes.byref(count)) == library.cuInit(0) == 0
    assert count.value == 1


def test_without_gcc_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="gcc is not installed"):
        fake_gpu.environment(tmp_path)


def test_a_process_without_that_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    with pytest.raises(RuntimeError, match=r"is a CPU build|environment has to be that of"):
        fake_gpu.install()
