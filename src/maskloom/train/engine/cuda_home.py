"""Where the CUDA toolkit is with which torch and DeepSpeed compile operators.

torch takes the folder above that of the first nvcc on the PATH. If that is a script which runs another (as in containers, with
compiler caches, in module systems), it is the wrong folder: headers and libcudart are not there, and the linker fails after
minutes. So every nvcc on the PATH is followed to a folder that is a toolkit; then come the usual places.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils import cpp_extension

USUAL = Path("/usr/local")
PACKAGES = Path(torch.__file__).parents[1] / "nvidia"
"""What torch's builds for CUDA bring along as packages: libraries and headers, of which a toolkit may be without some."""
INCLUDED_BY_TORCH = ("cuda_runtime.h", "cublas_v2.h", "cublasLt.h", "cusparse.h", "cusolverDn.h")
MOST_OF_SCRIPT = 1 << 16


def settle_cuda_home() -> Path | None:
    """Let operators be compiled with the toolkit that is here; CUDA_HOME or CUDA_PATH in the environment decide, if set.

    Returns:
        the toolkit's folder; None if there is none.
    """
    given = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    home = Path(given) if given else find_cuda_home(torch.version.cuda or "")
    if home is not None:
        os.environ["CUDA_HOME"] = cpp_extension.CUDA_HOME = str(home)
        folders = [str(folder) for folder in lacking_headers(home)]
        known = os.environ.get("CPATH", "").split(":")
        os.environ["CPATH"] = ":".join(filter(None, [*known, *(folder for folder in folders if folder not in known)]))
    return home


def find_cuda_home(version: str) -> Path | None:
    """The first folder that is a CUDA toolkit of this version, such as 13.0, with which DeepSpeed compiles; else of another."""
    homes = [home for home in _places() if is_toolkit(home)]
    return next((home for home in homes if version_of(home) == version), homes[0] if homes else None)


def is_toolkit(home: Path) -> bool:
    """Whether a folder has the compiler, and the headers of the CUDA runtime."""
    return os.access(home / "bin" / "nvcc", os.X_OK) and any(
        _is_file(folder / "cuda_runtime.h") for folder in _includes(home)
    )


def version_of(home: Path) -> str | None:
    """Of a toolkit, as its header cuda.h has it: 13000 is 13.0."""
    for folder in _includes(home):
        try:
            text = (folder / "cuda.h").read_text(errors="replace")
        except OSError:
            continue
        if found := re.search(r"^#define\s+CUDA_VERSION\s+(\d{4,6})\b", text, re.MULTILINE):
            return f"{int(found[1]) // 1000}.{int(found[1]) % 1000 // 10}"
    return None


def lacking_headers(home: Path) -> list[Path]:
    """Folders of torch's packages with headers that torch includes and the toolkit, which may be the compiler alone, lacks."""
    folders = []
    for header in INCLUDED_BY_TORCH:
        if not any(_is_file(folder / header) for folder in _includes(home)):
            folders += sorted(file.parent for file in PACKAGES.glob(f"*/include/{header}"))[:1]
    return list(dict.fromkeys(folders))


def _places() -> Iterator[Path]:
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        nvcc = Path(folder, "nvcc")
        if folder and _is_file(nvcc):
            yield from (file.parents[1] for file in (nvcc, nvcc.resolve(), _wrapped(nvcc)) if file is not None)
    yield USUAL / "cuda"
    yield from sorted(USUAL.glob("cuda-*"), reverse=True)
    yield from sorted(PACKAGES.glob("cu[0-9]*"), reverse=True)


def _wrapped(nvcc: Path) -> Path | None:
    """What a script of the name nvcc runs, if it says so by a whole path."""
    try:
        with nvcc.open("rb") as file:
            text = file.read(MOST_OF_SCRIPT)
    except OSError:
        return None
    words = re.split(rb"[\s\"'$=;\0]+", text) if text.startswith(b"#!") else []
    found = [word for word in words if word.startswith(b"/") and word.endswith(b"/bin/nvcc")]
    return Path(os.fsdecode(found[0])) if found else None


def _is_file(path: Path) -> bool:
    """As `Path.is_file`; also False for what can be no path, such as one that is too long."""
    return os.path.isfile(path)  # noqa: PTH113


def _includes(home: Path) -> list[Path]:
    return [home / "include", *map(Path, glob.glob(f"{glob.escape(str(home))}/targets/*/include"))]  # noqa: PTH207  # the same
