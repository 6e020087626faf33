"""Training steps and the time to a loss beside plain Hugging Face: the command, see `step/command.py` and `--help`."""

from __future__ import annotations

from maskloom.program import run_program

if __name__ == "__main__":
    from step.command import main

    run_program("step", main)
