"""Argument types that several commands share. Numbers have the digits 0 to 9 only: Python alone reads `²`, `٣` and `1_0` too."""

from __future__ import annotations

import argparse
import re
from typing import Literal

from maskloom.scalars import NUMBER

WHOLE = re.compile(r"0|[1-9][0-9]{0,17}")
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def byte_count(text: str) -> int:
    """`64M` -> 67108864."""
    match = re.fullmatch(rf"({WHOLE.pattern})([KMG]?)(i?B)?", text, flags=re.IGNORECASE)
    if not match or not int(match[1]):
        raise argparse.ArgumentTypeError(f"'{text}' is not a size in bytes, such as 131072, 128K or 64M")
    return int(match[1]) * UNITS[match[2].upper()]


def fraction(text: str) -> float:
    """A share from 0 up to, not including, 1."""
    value = float(text) if NUMBER.fullmatch(text) else -1.0
    if not 0.0 <= value < 1.0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a share of at least 0 and less than 1")
    return value


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not WHOLE.fullmatch(text) or not int(text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def step_or_best(text: str) -> int | Literal["best"]:
    """The step of a checkpoint, or `best`."""
    try:
        return "best" if text == "best" else positive(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"'{text}' is neither the step of a checkpoint nor `best`") from None


def add_step(parser: argparse.ArgumentParser) -> None:
    """Let a command take another checkpoint of a run than the newest, by `--step` or `--best`."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--step", type=step_or_best, help="checkpoint to take: its step, or `best` (default: the newest)"
    )
    which.add_argument(
        "--best", dest="step", action="store_const", const="best", help="take the one with the lowest held-out loss"
    )


def natural(text: str) -> int:
    """A whole number, 0 too."""
    if not WHOLE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number")
    return int(text)


def step_range(text: str) -> range:
    """`10:12` -> the steps 10 and 11, counted from 0."""
    match = re.fullmatch(rf"({WHOLE.pattern}):({WHOLE.pattern})", text)
    if not match or int(match[1]) >= int(match[2]):
        raise argparse.ArgumentTypeError(f"'{text}' is not a range of steps A:B with A < B")
    return range(int(match[1]), int(match[2]))
