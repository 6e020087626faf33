"""`python -m step` is `python benchmarks/step.py`."""

from __future__ import annotations

from maskloom.program import run_program

if __name__ == "__main__":
    from step.command import main

    run_program("step", main)
