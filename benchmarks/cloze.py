"""How many masked words a model guesses: the command, see `cloze/command.py` and `--help`."""

from __future__ import annotations

from maskloom.program import run_program

if __name__ == "__main__":
    from cloze.command import main

    run_program("cloze", main)
