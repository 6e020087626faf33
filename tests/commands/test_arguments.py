"""Numbers on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import pytest

from maskloom.commands.arguments import byte_count, fraction, natural, positive, step_or_best, step_range

STRANGE = ["²", "٣", "１", "1_0", " 1", "1\n", "+1", "-1", "01", "1e3", "0x1", "", "9" * 5000, "one"]


@pytest.mark.parametrize("text", STRANGE)
@pytest.mark.parametrize("read", [positive, natural, byte_count, step_or_best, lambda text: step_range(f"0:{text}")])
def test_what_is_not_a_whole_number_of_digits_0_to_9_is_refused(read: Callable[[str], object], text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        read(text)


@pytest.mark.parametrize("text", ["²", "٣", "0.1_5", "nan", "inf", " 0.1", "1", "-0.1", "", "0x0", "00.1"])
def test_what_is_not_a_share_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        fraction(text)


def test_numbers_are_read() -> None:
    assert (step_or_best("12"), step_or_best("best")) == (12, "best")
    assert (positive("12"), natural("0"), step_range("10:12")) == (12, 0, range(10, 12))
    assert [byte_count(text) for text in ("7", "1k", "64M", "2GiB")] == [7, 1 << 10, 64 << 20, 2 << 30]
    assert [fraction(text) for text in ("0", "0.5", ".25", "1e-3")] == [0.0, 0.5, 0.25, 1e-3]
