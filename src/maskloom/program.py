"""How a program of ours begins and ends: `maskloom`, a rank, a process that another one asks.

    ready streams -> main() -> exit code -> children are ended, streams written -> the process is gone

The end is one for all of them, and at once. What the interpreter would do, wait for processes and threads, is of no use any more,
and may never come to an end: reader processes hear no signal but SIGKILL.

This module imports next to nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NoReturn

from maskloom.early import ready

EXIT_INTERRUPTED = 130
"""By Ctrl-C, as in a shell."""


def run_program(name: str, main: Callable[[], int]) -> NoReturn:
    """Call `main` and leave with the exit code that it returns; `name` stands before messages."""
    ready()
    from maskloom.errors import UserError
    from maskloom.progress import complain

    code: int | str | None
    try:
        code = main()
    except SystemExit as left:  # argparse's way
        code = left.code
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
        complain(f"{name}: interrupted")
    except BrokenPipeError:  # `| head`
        code = 1
    except (UserError, OSError) as error:  # OSError: a folder that may not be written, a full disk
        code = f"{name}: {error}"
    except BaseException:
        import traceback

        code = traceback.format_exc().rstrip()
    if isinstance(code, str):
        complain(code)
        code = 1
    end(code or 0)


def end(code: int) -> NoReturn:
    """Leave at once: nothing of what the interpreter, NCCL or a reader process would still wait for is needed any more."""
    from maskloom.processes import end_children
    from maskloom.progress import flush

    end_children()
    flush()
    os._exit(code)
