"""`benchmarks/rehearse` is run from benchmarks/, as `python -m rehearse`: here its pure parts are imported from there."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
