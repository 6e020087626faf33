"""Kinds of values in a configuration, and the base of its sections. `config` and its sections are made of them."""

from __future__ import annotations

from typing import Annotated, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from maskloom.scalars import TokenCount, read_as

BelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]
PositiveShare = Annotated[float, Field(gt=0.0, le=1.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]

# Far above what anybody trains, but low enough that a typing mistake is refused before it fills the memory.
MOST_STEPS = 10**12
MOST_ROWS = 1 << 24
LEAST_SEQ_LEN, MOST_SEQ_LEN = 8, 1 << 20
LARGEST_WEIGHT = 1e6  # only the ratios of weights matter
MOST_STEP_SLOTS = 1 << 30
"""Token slots of one optimizer step over all ranks. BERT-large with LAMB takes 2^25."""
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]


def _unless_null(given: object, read: pydantic.ValidatorFunctionWrapHandler) -> object:
    return None if given is None else read(given)


StepsUntilTokens = Annotated[int, Field(ge=1, le=MOST_STEPS), pydantic.WrapValidator(_unless_null)]
"""Steps that may be left out or null while a configuration is read, if a count of tokens says how many there are."""
StepsOrNone = Annotated[int, Field(ge=0, le=MOST_STEPS)]
"""0 means none, or never."""
MOST_TOKENS = 10**18
Tokens = Annotated[TokenCount, Field(ge=1, le=MOST_TOKENS)]
"""Token slots, padding included: rows times slots a row. `config_tokens` turns them into steps before anything else sees them."""
RowCount = Annotated[int, Field(ge=1, le=MOST_ROWS)]
SeqLen = Annotated[int, Field(ge=LEAST_SEQ_LEN, le=MOST_SEQ_LEN)]
Width = Annotated[int, Field(ge=1, le=1 << 17)]
Few = Annotated[int, Field(ge=1, le=1 << 12)]
"""A count of at most some thousands: layers, heads, attempts."""


def _folder(text: str) -> str:
    """A path. It is taken as it is written, since no shell reads it."""
    if not text.strip():
        raise ValueError(f"{text!r} does not name a folder")
    if not text.isprintable():
        raise ValueError(f"{text!r} has a line break or another character that cannot be printed: choose another name")
    if text.startswith("~"):
        raise ValueError(
            f"{text!r}: ~ is not expanded here, and would be a folder of that name: write the path in full"
        )
    return text


Folder = Annotated[str, pydantic.AfterValidator(_folder)]


THETAS = (1e-3, 1e12)
Theta = Annotated[float, Field(gt=THETAS[0], lt=THETAS[1])]
"""Base of rotary frequencies. With a far smaller one angles are not finite, and no checkpoint has a larger one."""


class Section(BaseModel):
    """A block of the YAML file. It refuses unknown keys, and reads plain values by the types of its fields."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _read(cls, given: object, info: pydantic.ValidationInfo) -> object:
        try:
            return read_as(given, cls.model_fields[str(info.field_name)].annotation)
        except ValueError as error:
            raise PydanticCustomError("form", "{reason}", {"reason": str(error)}) from None


S = TypeVar("S", bound=Section)


def check_length(section: S, steps: str, tokens: str, is_needed: bool = False) -> S:
    """The section. Raises ValueError if it has a length in steps and in tokens, or in neither although one is needed."""
    given = [name for name in (steps, tokens) if getattr(section, name)]
    if len(given) == 2:
        raise ValueError(
            f"{steps} {getattr(section, steps)} and {tokens} {getattr(section, tokens)} are both set, and each says how long it "
            f"is: remove one of them (on the command line: {steps}={'null' if is_needed else 0}, or {tokens}=null)"
        )
    if is_needed and not given:
        raise ValueError(f"'{steps}' is missing: set it, or {tokens}")
    return section
