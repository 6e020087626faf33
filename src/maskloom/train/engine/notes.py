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
from maskloom.redaction import one_line
from maskloom.train.engine.kernels import why_not_compiled

FIRST_DRIVER = {12: 525, 13: 580}
"""Of NVIDIA, by the first number of CUDA's version, for Linux (CUDA's release notes, minor version compatibility)."""
OF_REGISTRY = 13
"""CUDA of the build that `pip install torch` takes by itself, from torch 2.11 on."""
ANSWER_S = 10.0


def notes_on_device(asked: Engine) -> Iterator[str]:
    """What a user should know of this machine before a run computes on it, each a line."""
    device = get_accelerator().device_name()
    if device == "cuda" and asked.kernels == "auto" and (why := why_not_compiled()):
        yield f"engine.kernels auto is eager here, which is slower on a GPU: {why}"
    if device == "cpu" and (note := unusable_gpus()):
        yield note


def unusable_gpus() -> str | None:
    """That nvidia-smi shows GPUs which torch cannot use, why, and what to do; None where it shows none, where torch can use
    them, and where the user hides them."""
    if torch.cuda.is_available() or "DS_ACCELERATOR" in os.environ or _are_hidden():
        return None
    gpus = ask_nvidia_smi("--query-gpu", ["name", "driver_version"], ["name", "driver"], ANSWER_S)
    if not gpus:
        return None
    names = ", ".join(sorted({gpu["name"] for gpu in gpus}))
    shown = f"nvidia-smi shows {len(gpus)} GPU(s) ({names}, driver {gpus[0]['driver']})"
    why, remedy = _why_and_remedy(gpus[0]["driver"])
    said = f"{shown}, and torch {torch.__version__} cannot use them: {why}"
    return f"{said}. The run computes on the CPU. {remedy}; see docs/install.md"


def _are_hidden() -> bool:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible is not None and not re.match(r"\s*(\d|GPU-|MIG-)", visible)


def _why_and_remedy(driver: str) -> tuple[str, str]:
    found = re.match(r"\d+", driver)
    has = int(found.group()) if found else 0
    version = torch.version.cuda
    if version is None:
        pip = f"{sys.executable} -m pip"
        command = f"{pip} uninstall --yes torch && {pip} install torch=={torch.__version__.split('+')[0]}"
        none, usual = "it is no build for CUDA", FIRST_DRIVER[OF_REGISTRY]
        usable = [cuda for cuda, first in FIRST_DRIVER.items() if first <= has]
        if not has or OF_REGISTRY in usable:
            return none, f"Install one: {command}"
        either = f"Install one for CUDA {usable[-1]}, or update" if usable else "Update"
        return none, f"{either} the driver to {usual} or later and install the usual build: {command}"
    first = FIRST_DRIVER.get(int(version.split(".")[0]), 0)
    if has < first:
        return (
            f"it is built for CUDA {version}, which needs driver {first} or later",
            "Update the driver, or install a torch for an older CUDA",
        )
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        said = "no GPU is visible to it"
    except (RuntimeError, AssertionError) as error:
        said = one_line(str(error))
    return said, "Look whether this shell, container or job may use them"
