"""What the start of a run warns of once: a GPU that torch cannot use, kernels that cannot be compiled."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator

import torch
from deepspeed.accelerator import get_accelerator

from maskloom.config import Engine
from maskloom.nvidia_smi import ask_nvidia_smi
from maskloom.redaction import one_line, shortened
from maskloom.train.engine.kernels import why_not_compiled

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
