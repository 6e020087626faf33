"""How a program of ours begins and ends: `maskloom`, a rank, a process that another one asks.

    ready streams -> main() -> exit code -> children are ended, streams written -> the process is gone

The end is one for all of them, and at once. What the interpreter would do, wait for processes and threads, is of no use any more,
and may never come to an end: reader processes hear no signal but SIGKILL.

This module imports next to nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from maskloom.early import ready

EXIT_INTERRUPTED = 130
"""By Ctrl-C, as in a shell."""


def run_program(name: str, main: Callable[[], int]) -> NoReturn:
    """Call `main` and leave with the exit code that it returns; `name` stands before messages."""
    ready()
    try:
        code = _exit_code(main)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
        _complain(f"{name}: interrupted")
    except BaseException:
        import traceback

        code = 1
        _complain(traceback.format_exc().rstrip())
    end(code)


def end(code: int) -> NoReturn:
    """Leave at once: nothing of what the interpreter, NCCL or a reader process would still wait for is needed any more."""
    from maskloom.processes import end_children
    from maskloom.progress import flush

    end_children()
    flush()
    os._exit(code)


def _exit_code(main: Callable[[], int]) -> int:
    """Of `main`, also where argparse leaves by SystemExit: what it was asked to print must have been written."""
    try:
        return main()
    except SystemExit as left:
        if isinstance(left.code, str):
            _complain(left.code)
            return 1
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            return 1
        except OSError as error:
            _complain(f"standard output cannot be written: {error.strerror}")
            return 1
        return left.code or 0


def _complain(message: str) -> None:
    from maskloom.progress import complain

    complain(message)
