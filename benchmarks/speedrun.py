"""The lowest held-out loss for 240 CPU-seconds of training: the command, see `speedrun/command.py` and `--help`."""

from __future__ import annotations

from maskloom.program import run_program

if __name__ == "__main__":
    from speedrun.command import main

    run_program("speedrun", main)
