"""Versions of what must be the same on every host, and digests of files."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import maskloom

PACKAGES = ("torch", "deepspeed", "maskloom", "transformers", "numpy")


def packages() -> dict[str, str]:
    """Versions of what must be the same on every host."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = maskloom.__version__ if name == "maskloom" else "missing"  # run from its source
    return found


def source_digest(folder: Path) -> str:
    """One digest of all Python files below a folder, with their names."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def file_digest(file: Path) -> str | None:
    """Digest of a file's bytes; None where it cannot be read."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    except OSError:
        return None
