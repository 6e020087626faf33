"""`engine.kernels`: what `auto` is on this machine, and what torch.compile needs that may be missing.

On a GPU Inductor writes kernels for Triton, which compiles with gcc or clang, and Python's headers, the C code that launches
them. On a CPU it writes C++.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path
from typing import Literal

import torch
from deepspeed.accelerator import get_accelerator

from maskloom.errors import UserError

FIRST_CAPABILITY = (7, 0)
"""Of the GPUs that Inductor writes for."""


def resolve_kernels(wanted: Literal["auto", "eager", "compile"]) -> Literal["eager", "compile"]:
    """`auto` to compile on a GPU, unless something is missing there, and to eager on a CPU.

    Raises:
        UserError: compile was asked for, and cannot be had.
    """
    if wanted == "auto":
        return "compile" if get_accelerator().device_name() == "cuda" and not why_not_compiled() else "eager"
    if wanted == "compile" and (why := why_not_compiled()):
        raise UserError(f"engine.kernels compile cannot be had here: {why}; or set engine.kernels=eager")
    return wanted


def why_not_compiled() -> str | None:
    """What torch.compile lacks on this machine, and what to do; None if it lacks nothing that can be seen."""
    return _lacks_on_gpu() if get_accelerator().device_name() == "cuda" else _lacks_on_cpu()


def _lacks_on_gpu() -> str | None:
    capability = torch.cuda.get_device_capability()
    if capability < FIRST_CAPABILITY:
        return "torch writes kernels for GPUs of compute capability 7.0 and above, and this one has {}.{}".format(
            *capability
        )
    if not importlib.util.find_spec("triton"):
        return "Triton is not installed, which builds of torch for CUDA bring along: install it with pip install triton"
    chosen = os.environ.get("CC")
    if not any(shutil.which(compiler) for compiler in ([chosen] if chosen else ["gcc", "clang"])):
        missing = f"CC={chosen} in the environment names no program" if chosen else "there is no C compiler"
        return f"{missing}, which Triton needs: install gcc, or set CC to a compiler"
    header = Path(sysconfig.get_path("include", _scheme()), "Python.h")
    if not header.is_file():
        return (
            f"Python's headers are missing ({header}), which Triton needs: install python3-dev, or what has them here"
        )
    return None


def _lacks_on_cpu() -> str | None:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler):
        return None
    return f"there is no C++ compiler {compiler}: install g++, or set CXX to a compiler"


def _scheme() -> str:
    """Debian's own scheme names a folder that holds no headers; Triton passes it over in the same way."""
    scheme = sysconfig.get_default_scheme()
    return "posix_prefix" if scheme == "posix_local" else scheme
