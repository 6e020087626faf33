"""What `turns.py` starts, once a system: `python -m step.process JOB`."""

from __future__ import annotations

import sys

from maskloom.program import run_program


def main() -> int:
    """Answer requests until there are no more."""
    from step.jobs import Job
    from step.worker import serve

    serve(Job.loads(sys.argv[1]))
    return 0


if __name__ == "__main__":  # reader processes import this module again: what is heavy comes after that point
    run_program("step", main)
