"""Argument types that several commands share."""

from __future__ import annotations

import argparse
import os
import re

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def byte_count(text: str) -> int:
    """`64M` -> 67108864."""
    match = re.fullmatch(r"(\d+)([KMG]?)(i?B)?", text, flags=re.IGNORECASE)
    if not match or not int(match[1]):
        raise argparse.ArgumentTypeError(f"'{text}' is no size in bytes, such as 131072, 128K or 64M")
    return int(match[1]) * UNITS[match[2].upper()]


def fraction(text: str) -> float:
    """A share from 0 up to, not including, 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < 1.0:
        raise argparse.ArgumentTypeError(f"'{text}' is no share of at least 0 and less than 1")
    return value


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number of at least 1")
    return int(text)


def natural(text: str) -> int:
    """A whole number, 0 too."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number")
    return int(text)


def step_range(text: str) -> range:
    """`10:12` -> the steps 10 and 11, counted from 0."""
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise argparse.ArgumentTypeError(f"'{text}' is no range of steps A:B with A < B")
    return range(int(match[1]), int(match[2]))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
