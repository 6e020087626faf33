"""Programs of `benchmarks/` are run from there: here their modules are imported from there."""

from __future__ import annotations

import sys

from .scripts import BENCHMARKS

sys.path.append(str(BENCHMARKS))
