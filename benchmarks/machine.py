"""The machine, the packages and the source that a result was measured with."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch
from step.cases import Device

import maskloom

PACKAGES = "maskloom torch deepspeed transformers tokenizers numpy webdataset triton".split()
SOURCE = Path(maskloom.__file__).resolve().parent


def stamp(command: str, device: Device, packages: list[str] | None = None) -> dict[str, Any]:
    """When, where and with what a measurement is made.

    Args:
        command: that makes it.
        packages: whose versions are kept, where they are installed.
    """
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": command,
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "gpu_memory_bytes": torch.cuda.get_device_properties(0).total_memory if device == "cuda" else None,
        "cuda": torch.version.cuda if device == "cuda" else None,
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": versions(packages or PACKAGES),
        "load_average": os.getloadavg()[0],
    }


def name_of(device: Device) -> str:
    """For a file name: `cpu`, `nvidia-h200`."""
    if device == "cpu":
        return "cpu"
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")


def cpu_name() -> str:
    """As the kernel calls it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str | None:
    """Of the source of maskloom, with a + if it was changed since; if it is not a git checkout, what the variable
    MASKLOOM_COMMIT says, or None."""
    head = _git("rev-parse", "--short=12", "HEAD")
    if head is None:
        return os.environ.get("MASKLOOM_COMMIT") or None
    return head + ("+" if _git("status", "--porcelain", ".") else "")


def versions(packages: list[str]) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=SOURCE, capture_output=True, text=True, check=False)
    except OSError:  # there is no git
        return None
    return done.stdout.strip() if done.returncode == 0 else None
