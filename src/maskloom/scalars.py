"""Reads a value without quotes, in YAML files and on the command line alike. The key decides what it is:

    text          as it is written: `run_dir: 2026-11-28`, `run_dir: 0123`
    whole number  decimal: `1000`, also `1e3` and `1000.0`
    tokens        a whole number, or with a unit: `50B`, `1.719T` (K, M, B and T are powers of 1000)
    number        decimal: `1`, `-0.5`, `.5`, `1e-4`
    switch        `true` or `false`
    nothing       `null`, `~`, or no value

YAML 1.1, YAML 1.2 and people read some forms differently. `0123` is 83, 123 or an error; `1:40` is 100 or text; `no` is false or
text. Such a value is refused, and the message says what to write. Quotes make anything text. In the `deepspeed` block types are
not known: there the form of a value decides.
"""

from __future__ import annotations

import decimal
import json
import math
import re
import types
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Annotated, Literal, NewType, Union, get_args, get_origin

Scalar = str | int | float | bool | None
TokenCount = NewType("TokenCount", int)
"""The type of a setting that counts tokens. It may be written with a unit."""
LONGEST_NUMBER = 400
"""Characters of a number. A longer one is a mistake, and takes long to read."""
LARGEST_EXPONENT = 30
"""No setting takes a whole number above 10 to this power."""
NULL = re.compile(r"(~|null|Null|NULL)?")
WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*)")
NUMBER = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
WITH_UNIT = re.compile(r"((?:0|[1-9][0-9]*)(?:\.[0-9]+)?)([KMBT])")
UNITS = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
SWITCHES = {word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")}
LIKE_SWITCHES = {form(word) for word in ("yes", "no", "on", "off") for form in (str.lower, str.title, str.upper)}
"""Switches in YAML 1.1, text in YAML 1.2."""
LEADING_ZEROS = re.compile(r"([-+]?)0+([0-9][0-9_]*)")
PREFIXED = re.compile(r"[-+]?0([xX][0-9a-fA-F_]+|[oO][0-7_]+|[bB][01_]+)")
DATE = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt \t].*)?")
AMBIGUOUS = re.compile(
    rf"""[yYnN] | = | <<
    | {PREFIXED.pattern}
    | [-+]?(0[0-9_]+ | [0-9.][0-9_]*_[0-9_]* | [0-9][0-9_]*\.[0-9_]*)(\.[0-9_]*)?([eE][-+]?[0-9]+)?
    | [-+]?[0-9][0-9_]*(:[0-9]+)+(\.[0-9_]*)?
    | {DATE.pattern}""",
    re.VERBOSE,
)
"""Text here, but a number, a switch or a date in some version of YAML."""


class Plain(str):
    """The text of a value that was written without quotes."""

    __slots__ = ()


def is_count(value: object) -> bool:
    """Whether a value of JSON is a count: a whole number from 0 that fits a signed 64-bit integer."""
    return type(value) is int and 0 <= value < 1 << 63


def read_text(given: object) -> object:
    """The value of a setting that takes text. Raises ValueError if it is not text, or a word that YAML 1.1 reads as a switch."""
    if isinstance(given, Plain) and (given in SWITCHES or given in LIKE_SWITCHES):
        raise ValueError(f"text belongs here, and this may mean a switch. {_quoted(given)}")
    if isinstance(given, bool | int | float):
        raise ValueError("text belongs here: write it in quotes")
    return str(given) if isinstance(given, str) else given


def read_whole(given: object) -> object:
    """The value of a setting that takes a whole number. Raises ValueError if it is not one."""
    if isinstance(given, float) and given.is_integer():
        return int(given)
    if not isinstance(given, Plain):
        return _of_type(given, (int,), "a whole number")
    value = _decimal(given, "a whole number, such as 1000 or 1e3")
    if value.adjusted() > LARGEST_EXPONENT:
        raise ValueError("too large")
    if value != value.to_integral_value():
        raise ValueError("not a whole number")
    return int(value)


def read_tokens(given: object) -> object:
    """The value of a setting that counts tokens: `50B`, `1.719T`, or a whole number. Raises ValueError if it is neither."""
    if not isinstance(given, str):
        return read_whole(given)
    match = WITH_UNIT.fullmatch(given) if len(given) <= LONGEST_NUMBER else None
    if match:
        count = Fraction(match[1]) * UNITS[match[2]]
        if count >= 10 ** (LARGEST_EXPONENT + 1):
            raise ValueError("too large")
        if count.denominator != 1:
            raise ValueError("not a whole number of tokens")
        return int(count)
    if isinstance(given, Plain) and NUMBER.fullmatch(given):
        return read_whole(given)
    raise ValueError("not a number of tokens, such as 500M, 50B, 1.719T or 65536 (K, M, B and T are powers of 1000)")


def read_number(given: object) -> object:
    """The value of a setting that takes a number. Raises ValueError if it is not one."""
    if not isinstance(given, Plain):
        return _of_type(given, (int, float), "a number")
    if NOT_FINITE.fullmatch(given):
        raise ValueError("not a finite number")
    _decimal(given, "a number, such as 0.5 or 1e-4")
    return float(given)


def read_switch(given: object) -> object:
    """The value of a setting that is true or false. Raises ValueError if it is neither."""
    if isinstance(given, str | int | float) and not isinstance(given, bool) and given not in SWITCHES:
        raise ValueError("neither true nor false")
    if isinstance(given, str) and not isinstance(given, Plain):
        raise ValueError(f"text in quotes: write {given.lower()} without them")
    return SWITCHES[given] if isinstance(given, Plain) else given


def read_by_form(given: object) -> object:
    """A value or a tree of values whose types are not known: each is what its form says.

    Raises:
        ValueError: versions of YAML read it differently, or it holds a number that JSON lacks; DeepSpeed reads JSON.
    """
    _check_keys(given)
    value = each_plain(given, _read_plain)
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise ValueError("it holds a number that is not finite: write a finite one, or leave the key out") from None
    return value


def _check_keys(tree: object) -> None:
    """Raises ValueError for a key without quotes that some version of YAML does not read as text."""
    for key, part in (
        tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    ):
        if isinstance(key, Plain) and (not isinstance(by_form(key), str) or is_ambiguous(key)):
            raise ValueError(f"the key {str(key)!r} is read in different ways, and keys are text. {_quoted(key)}")
        try:
            _check_keys(part)
        except ValueError as error:
            raise ValueError(f"{key!r}: {error}") from None


def each_plain(tree: object, read: Callable[[Plain], object]) -> object:
    """The tree with every value without quotes replaced by `read(value)`. The keys are put before a ValueError of `read`."""
    if isinstance(tree, Plain):
        return read(tree)
    if not isinstance(tree, dict | list | tuple):
        return tree
    parts = {}
    for key, part in tree.items() if isinstance(tree, dict) else enumerate(tree):
        try:
            parts[str(key) if isinstance(key, str) else key] = each_plain(part, read)
        except ValueError as error:
            raise ValueError(f"{key!r}: {error}") from None
    return parts if isinstance(tree, dict) else list(parts.values())


def _read_plain(given: Plain) -> Scalar:
    if NUMBER.fullmatch(given) and by_form(given) in (given, math.inf, -math.inf):
        raise ValueError("too large for a number")
    if DATE.fullmatch(given):
        raise ValueError(f"{str(given)!r} is a date in some versions of YAML, and JSON has none. {_quoted(given)}")
    if is_ambiguous(given):
        raise ValueError(f"{str(given)!r} is read in different ways: write {_remedy(given)}. {_quoted(given)}")
    return by_form(given)


def read_as(given: object, annotation: object) -> object:
    """A value as a field of this type takes it; sections are left to their own fields. Raises ValueError saying what is wrong."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if given is None:
        return None
    if get_origin(annotation) in (Union, types.UnionType):
        choices = [choice for choice in get_args(annotation) if choice is not type(None)]
        several = [choice for choice in choices if _is_list(choice)]
        return read_as(given, several[0] if several and not isinstance(given, str) else choices[0])
    if _is_list(annotation):
        return _read_items(given, get_args(annotation)[0]) if isinstance(given, list | tuple) else given
    if get_origin(annotation) is Literal:
        annotation = type(get_args(annotation)[0])
    if get_origin(annotation) is dict:
        return read_by_form(given)
    readers: dict[object, Callable[[object], object]] = {
        str: read_text,
        int: read_whole,
        TokenCount: read_tokens,
        float: read_number,
        bool: read_switch,
    }
    return readers[annotation](given) if annotation in readers else given


def _is_list(annotation: object) -> bool:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return get_origin(annotation) is tuple


def _read_items(given: Sequence[object], annotation: object) -> tuple[object, ...]:
    items = []
    for place, item in enumerate(given):
        try:
            items.append(read_as(item, annotation))
        except ValueError as error:
            raise ValueError(f"item {place}, {item!r}: {error}") from None
    return tuple(items)


def by_form(given: str) -> Scalar:
    """A value without quotes by its form: text, number, switch or None."""
    if NULL.fullmatch(given):
        return None
    if given in SWITCHES:
        return SWITCHES[given]
    if NOT_FINITE.fullmatch(given):
        return float(given.replace(".", ""))
    if len(given) <= LONGEST_NUMBER and NUMBER.fullmatch(given):
        return int(given) if WHOLE.fullmatch(given) else float(given)
    return str(given)


def is_ambiguous(given: str) -> bool:
    """Whether a value without quotes is text here, but something else in some version of YAML."""
    is_text = len(given) <= LONGEST_NUMBER and isinstance(by_form(given), str)
    return is_text and (given in LIKE_SWITCHES or bool(AMBIGUOUS.fullmatch(given)))


def _decimal(given: Plain, wanted: str) -> decimal.Decimal:
    if len(given) > LONGEST_NUMBER:
        raise ValueError(f"{len(given):,} characters are too many for a number")
    if not NUMBER.fullmatch(given):
        raise ValueError(f"not {wanted}" + (f": write {_remedy(given)}" if AMBIGUOUS.fullmatch(given) else ""))
    try:
        return decimal.Decimal(given)
    except decimal.InvalidOperation:  # the exponent is out of range
        raise ValueError(f"not {wanted}") from None


def _of_type(given: object, kinds: tuple[type, ...], wanted: str) -> object:
    """`given`, unless it is a single value of another type, which is refused. pydantic judges lists and dicts."""
    if isinstance(given, str):
        raise ValueError(f"text, and {wanted} belongs here: write it without quotes")
    if isinstance(given, bool | int | float) and (isinstance(given, bool) or not isinstance(given, kinds)):
        raise ValueError(f"not {wanted}")
    return given


def _remedy(given: str) -> str:
    digits = given.replace("_", "")
    if PREFIXED.fullmatch(given) and len(digits) <= LONGEST_NUMBER:
        try:
            return str(int(digits, 0))
        except ValueError:  # only the prefix
            return "a decimal number"
    if zeros := LEADING_ZEROS.fullmatch(digits):
        decimal_number = f"{zeros[1]}{zeros[2]}"
        is_octal = not set(zeros[2]) & set("89") and len(zeros[2]) > 1
        return decimal_number + (f", or {int(digits, 8)} if it is octal" if is_octal else "")
    if NUMBER.fullmatch(digits):
        return digits
    if given in LIKE_SWITCHES or len(given) == 1:
        return "true or false"
    return "a decimal number"


def _quoted(given: str) -> str:
    return f"""If it is text, write "{given}" with the quotes (in a shell: '"{given}"')"""
