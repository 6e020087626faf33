"""How a program of maskloom begins, reads its command line and ends: `maskloom`, a rank, a helper process.

    ready streams -> main() -> exit code -> end children, flush streams -> exit

All programs end at once, by `end`. The interpreter would first wait for threads and processes. That is useless by then, and may
take for ever: reader processes ignore all signals but SIGKILL.

This module imports only small modules, so that a program handles signals early.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from maskloom.early import ready

EXIT_INTERRUPTED = 130
"""Ended by Ctrl-C; shells use the same code."""


UNKNOWN = "unrecognized arguments: "
"""How argparse begins the message about options that no parser has."""
OVERRIDES = "overrides"
"""Where a parser keeps its `key=value` arguments."""


class Parser(argparse.ArgumentParser):
    """A parser whose messages show arguments like all other messages do, and name the option that was most likely meant.

    Help that cannot be printed is an error.
    """

    def error(self, message: str) -> NoReturn:
        if message.startswith(UNKNOWN):
            options = [
                word.partition("=")[0] for word in message.removeprefix(UNKNOWN).split() if word.startswith("--")
            ]
            message += "".join(self._advice(option) for option in options[:1])
        super().error(message)

    def _advice(self, option: str) -> str:
        # Without the dashes, which all have: `--help` is not near `--steps`.
        known = [each.lstrip("-") for each in self._option_string_actions]
        if said := nearest(option.lstrip("-"), known, "--"):
            return said
        takes_settings = any(action.dest == OVERRIDES for action in self._actions)
        return "; settings have no dashes: write key=value, such as phases.0.steps=20" if takes_settings else ""

    def _print_message(self, message: str, file: Any = None) -> None:
        from maskloom.progress import show
        from maskloom.redaction import printable, shortened

        if file is sys.stdout and message:
            show(message.rstrip("\n"))
        else:
            super()._print_message(shortened(printable(message)), file)


def nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """What a message about an unknown word ends with: the known one that was most likely meant, or nothing."""
    import difflib

    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean `{prefix}{close[0]}`?" if close else ""


def add_overrides(parser: argparse.ArgumentParser, help: str = "settings that replace the file's") -> None:
    """Let the parser take any number of `key=value` at the end, as `options.overrides`."""
    # Without a default, argparse would list it among the required arguments.
    parser.add_argument(OVERRIDES, nargs="*", default=[], metavar="key=value", help=help)


def run_program(name: str, main: Callable[[], int]) -> NoReturn:
    """Call `main` and exit with the code that it returns. `name` begins its error messages."""
    ready()
    from maskloom.errors import UserError
    from maskloom.progress import complain

    code: int | str | None
    try:
        code = main()
    except SystemExit as left:  # argparse raises it
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
    """Exit at once, without waiting for threads, NCCL or reader processes."""
    from maskloom.processes import end_children
    from maskloom.progress import flush

    end_children()
    flush()
    os._exit(code)
