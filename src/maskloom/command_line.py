"""What the command lines of all programs share: messages that can be printed, and settings as `key=value`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from maskloom.progress import show
from maskloom.redaction import printable, shortened


class Parser(argparse.ArgumentParser):
    """Its messages show arguments as other messages show names, and help that was asked for arrives or is an error."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is sys.stdout and message:
            show(message.rstrip("\n"))
        else:
            super()._print_message(shortened(printable(message)), file)


def add_overrides(parser: argparse.ArgumentParser, help: str = "settings that replace the file's") -> None:
    """Have the parser take any number of `key=value` at the end, none too."""
    # Without a default of its own, argparse counts it among the arguments that are required.
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=help)
