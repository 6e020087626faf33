"""What a value without quotes is, beside what PyYAML (YAML 1.1) makes of it."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from maskloom.scalars import Plain, by_form, is_ambiguous, read_number, read_switch, read_text, read_whole

FORMS = st.from_regex(r"[-+]?[0-9._:eExobTt~yn+-]{0,8}", fullmatch=True) | st.sampled_from(
    [
        "Yes",
        "NO",
        "On",
        "oFF",
        "off",
        "y",
        "N",
        "True",
        "tRUE",
        "null",
        "Null",
        "nULL",
        ".Inf",
        "-.inf",
        ".NaN",
        "nan",
        "=",
        "<<",
    ]
)


def of_yaml_1_1(text: str) -> Any:
    """What PyYAML reads, None for what it reads as nothing, and `NotImplemented` for what it cannot."""
    try:
        return yaml.safe_load(f"[{text}]")[0]
    except (yaml.YAMLError, ValueError, IndexError):
        return NotImplemented


@settings(max_examples=2000, deadline=None)
@example("0123")
@example("1:40")
@example("2026-11-28")
@example("2026-11-28T10:00:00Z")
@example("0b1")
@example("1_0")
@given(FORMS)
def test_what_yaml_1_1_reads_as_no_text_is_the_same_here_or_ambiguous(text: str) -> None:
    there = of_yaml_1_1(text)
    if isinstance(there, str) or there is NotImplemented or ":" in text[-1:] or not text:
        return
    here = by_form(text)
    same = here == there and type(here) is type(there)
    assert same or str(here) == str(there) == "nan" or is_ambiguous(text), (here, there)
    if isinstance(there, datetime.date):
        assert is_ambiguous(text)


@given(FORMS)
def test_no_reader_takes_what_another_type_reads_differently(text: str) -> None:
    for reader, kind in ((read_whole, int), (read_number, float), (read_switch, bool)):
        try:
            value = reader(Plain(text))
        except ValueError:
            continue
        assert type(value) is kind
        assert value == by_form(text)


@given(st.integers(-(10**30), 10**30))
def test_whole_numbers_are_exact_however_they_are_written(number: int) -> None:
    for text in (f"{number}", f"{number}.0", f"{number}e0", f"{10 * number}e-1", f"{number}."):
        assert read_whole(Plain(text)) == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_what_python_and_pyyaml_write(number: float) -> None:
    assert read_number(Plain(repr(number))) == number
    assert read_number(Plain(yaml.safe_dump(number).splitlines()[0])) == number


@pytest.mark.parametrize("digits", ["１２", "٣", "²", "1\xa0", "1_0", "0x1", "1,0", "１e3"])
def test_digits_are_0_to_9(digits: str) -> None:
    for reader in (read_whole, read_number):
        with pytest.raises(ValueError, match="not a"):
            reader(Plain(digits))


@given(st.text())
def test_text_is_taken_to_the_letter_or_refused(text: str) -> None:
    assert read_text(text) == text
    assert type(read_text(text)) is str
    try:
        assert read_text(Plain(text)) == text
    except ValueError:
        assert text.lower() in ("true", "false", "yes", "no", "on", "off")


@pytest.mark.parametrize("text", ["1_" * 100_000 + "x", "0" * 200_000, "1:" * 100_000, "1" * 200_000 + "e"])
def test_long_text_is_soon_told_from_a_number(text: str) -> None:
    assert not is_ambiguous(text)
    with pytest.raises(ValueError, match="characters are too many"):
        read_whole(Plain(text))
