"""The device of a rank, and how torch computes on it: precision, numerics, kernels, and what the start of a run warns of.

Numerics are set before CUDA is initialised, and are the same on every rank:

- Products in bf16 and fp16 are summed in fp32 throughout. By default cuBLAS may round partial sums of a long product to 16 bits
  before it adds them up.
- fp32 products stay as torch has them: in full fp32, unless somebody allowed TF32.
- `engine.deterministic` takes of every operator the form that adds up in a fixed order. It matters for flash attention's
  backward and for sums into an index (the gradients of embeddings and of `index_select`). cuBLAS has a workspace for each
  stream, and Inductor does not measure. An operator of torch that has no such form raises an error with its name. DeepSpeed's
  operators, such as FusedAdam, work element by element. On CPUs nothing changes.

Kernels: on a GPU Inductor writes them for Triton, which compiles with gcc or clang, and Python's headers, the C code that
launches them. On a CPU it writes C++.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from deepspeed.accelerator import get_accelerator

from maskloom.config import Engine
from maskloom.distributed import World
from maskloom.errors import UserError
from maskloom.hardware import ask_nvidia_smi
from maskloom.models.kernels import linear
from maskloom.redaction import one_line, shortened

Precision = Literal["fp32", "bf16", "fp16"]
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
LEAST_ONEDNN_HIDDEN_SIZE = 256
"""`auto` leaves narrower models with eager. Their products gain less, and small runs whose losses are on record stay as they are,
bit for bit."""
FIRST_CAPABILITY = (7, 0)
"""Of the GPUs that Inductor writes for."""
FIRST_DRIVER = {12: 525, 13: 580}
"""Of NVIDIA, by the first number of CUDA's version, for Linux (CUDA's release notes, minor version compatibility)."""
OF_REGISTRY = 13
"""CUDA of the build that `pip install torch` takes by itself, from torch 2.11 on."""
FOR_OLDER_DRIVERS = 12
INDEX_FOR_OLDER_DRIVERS = "https://download.pytorch.org/whl/cu126"
"""Builds of torch for CUDA 12.6, for compute capabilities up to 9.0."""
RELEASES_FOR_OLDER_DRIVERS = re.compile(r"2\.1[1-3]\.")
NEWEST_FOR_OLDER_DRIVERS = "2.13.0"
"""For torch releases of which that index has none."""
ANSWER_S = 10.0


def device_of(world: World) -> torch.device:
    """The device of this rank. Raises UserError, on every rank of a machine, if the machine has fewer GPUs than ranks."""
    accelerator = get_accelerator()
    kind = accelerator.device_name()
    if kind == "cpu":
        return torch.device("cpu")
    count, ranks = accelerator.device_count(), max(world.local_size, world.local_rank + 1)
    if ranks > count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        shown = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"
        raise UserError(
            f"{ranks} ranks on a machine on which rank {world.rank} sees {count} {kind} device(s){shown}: each rank needs one. "
            f"Start at most {count} there (--processes {count}, slots={count} in a hostfile, --ntasks-per-node={count}), or show "
            "every rank all devices, if each is shown its own (Slurm: --gpus-per-node instead of --gpus-per-task)"
        )
    return torch.device(kind, world.local_rank)


def resolve_precision(wanted: Literal["auto", "fp32", "bf16", "fp16"]) -> Precision:
    """`auto` to bf16 on a GPU and fp32 on a CPU. Raises UserError for what the device cannot do."""
    accelerator = get_accelerator()
    if wanted == "auto":
        return "fp32" if accelerator.device_name() == "cpu" else "bf16"
    if wanted == "fp16" and not accelerator.is_fp16_supported():
        raise UserError(
            f"engine.precision fp16 is not supported on this {accelerator.device_name()}: set engine.precision=bf16 or fp32"
        )
    if wanted == "bf16" and not accelerator.is_bf16_supported():
        raise UserError(f"engine.precision bf16 is not supported on this {accelerator.device_name()}: use fp16 or fp32")
    return wanted


def settle_numerics(deterministic: bool) -> None:
    """Set how this process computes from here on; called before anything is on a GPU."""
    for dtype in ("bf16", "fp16"):
        setattr(torch.backends.cuda.matmul, f"allow_{dtype}_reduced_precision_reduction", False)
    if deterministic:
        # Read when cuBLAS is first used. A user's own value is kept: torch says if it will not do.
        os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")
    if deterministic != torch.are_deterministic_algorithms_enabled():  # TORCHINDUCTOR_DETERMINISTIC is left alone
        torch.use_deterministic_algorithms(deterministic)  # Inductor's setting too
    # Otherwise torch fills memory that is taken with NaN, to show who reads what nobody wrote: at a cost for every operator.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = deterministic


def numerics_title(device: str, precision: str) -> str:
    """What a reader of the log should know of it, each with a comma behind; empty on a CPU, which has no choice."""
    if device != "cuda":
        return ""
    said = []
    if precision == "fp32":
        said.append("products in fp32" if torch.get_float32_matmul_precision() == "highest" else "products in TF32")
    if torch.are_deterministic_algorithms_enabled():
        said.append("deterministic")
    return "".join(f"{words}, " for words in said)


def resolve_kernels(
    wanted: Literal["auto", "eager", "compile", "onednn"], hidden_size: int
) -> Literal["eager", "compile", "onednn"]:
    """`auto` to compile on a GPU, unless something is missing there; on a CPU to onednn if that is known to be faster, else to
    eager.

    Raises:
        UserError: compile or onednn was asked for, and cannot be had.
    """
    if wanted == "auto":
        if get_accelerator().device_name() == "cuda":
            return "eager" if why_not_compiled() else "compile"
        return "onednn" if hidden_size >= LEAST_ONEDNN_HIDDEN_SIZE and linear.is_faster() else "eager"
    if wanted == "compile" and (why := why_not_compiled()):
        raise UserError(f"engine.kernels compile cannot be had here: {why}; or set engine.kernels=eager")
    if wanted == "onednn" and get_accelerator().device_name() != "cpu":
        raise UserError("engine.kernels onednn is for CPUs, and this run has GPUs: set engine.kernels=auto")
    if wanted == "onednn" and not linear.is_available():
        raise UserError(
            "engine.kernels onednn cannot be had: this build of torch has no oneDNN; set engine.kernels=eager"
        )
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


def notes_on_device(asked: Engine) -> Iterator[str]:
    """What a user should know of this machine before a run computes on it, each a line."""
    device = get_accelerator().device_name()
    if device == "cuda" and asked.kernels == "auto" and (why := why_not_compiled()):
        yield f"engine.kernels auto is eager here, which is slower on a GPU: {why}"
    if device == "cpu" and (found := unusable_gpus()):
        said, remedy = found
        yield f"{said}. The run computes on the CPU. {remedy}"


def unusable_gpus() -> tuple[str, str] | None:
    """That nvidia-smi shows GPUs which torch cannot use and why, and what to do; None if it shows none, if torch can
    use them, or if the user hides them."""
    if torch.cuda.is_available() or "DS_ACCELERATOR" in os.environ or _are_hidden():
        return None
    gpus = ask_nvidia_smi("--query-gpu", ["name", "driver_version"], ANSWER_S)
    if not gpus:
        return None
    names = shortened(", ".join(sorted({gpu["name"] for gpu in gpus})))
    shown = f"nvidia-smi shows {len(gpus)} GPU(s) ({names}, driver {shortened(gpus[0]['driver_version'])})"
    why, remedy = _why_and_remedy(gpus[0]["driver_version"])
    return f"{shown}, and torch {torch.__version__} cannot use them: {why}", f"{remedy}; see docs/install.md"


def _are_hidden() -> bool:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible is not None and not re.match(r"\s*(\d|GPU-|MIG-)", visible)


def _why_and_remedy(driver: str) -> tuple[str, str]:
    found = re.match(r"\d{1,6}", driver)
    has = int(found.group()) if found else None
    version = torch.version.cuda
    if version is None:
        return "it is not built for CUDA", _build_for(has, FIRST_DRIVER[FOR_OLDER_DRIVERS])
    first = FIRST_DRIVER.get(int(version.split(".")[0]), 0)
    if has is not None and has < first:
        return f"it is built for CUDA {version}, which needs driver {first} or later", _build_for(has, first)
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        said = "no GPU is visible to it"
    except (RuntimeError, AssertionError) as error:
        said = one_line(str(error))
    return said, "Look whether this shell, container or job may use them"


def _build_for(driver: int | None, needed: int) -> str:
    """What to install for a driver (None: unknown); else from which one on this torch, or one for CUDA 12, would do."""
    pip, release = f"{sys.executable} -m pip", torch.__version__.split("+")[0]
    usual = FIRST_DRIVER[OF_REGISTRY]
    if driver is None or driver >= usual:
        return f"Install one: {pip} uninstall --yes torch && {pip} install torch=={release}"
    if driver < FIRST_DRIVER[FOR_OLDER_DRIVERS]:
        return f"Update the driver to {needed} or later"
    if not RELEASES_FOR_OLDER_DRIVERS.match(release):
        release = NEWEST_FOR_OLDER_DRIVERS
    command = f"{pip} uninstall --yes torch && {pip} install --index-url {INDEX_FOR_OLDER_DRIVERS} torch=={release}"
    return f"Install one for CUDA 12 (GPUs after Hopper need driver {usual} or later and the usual build): {command}"
