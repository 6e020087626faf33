"""Programs of `benchmarks/`, as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load(name: str) -> ModuleType:
    """The module of a file below `benchmarks/`, such as `gpu/check`, under a name that hides no other module."""
    title = "benchmarks_" + name.replace("/", "_")
    spec = importlib.util.spec_from_file_location(title, BENCHMARKS / f"{name}.py")
    assert spec and spec.loader
    module = sys.modules[title] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
