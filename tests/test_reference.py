"""The reference pages hold every key, every command and every option, and each has words that say what it is."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pydantic
import pytest
from tools import reference

from maskloom.commands import COMMANDS
from maskloom.config import MODELS, Model, OptimizerSection, RunConfig, Section
from maskloom.config_values import Few, PositiveShare
from maskloom.scalars import TokenCount

ROOT = Path(__file__).parents[1]


def sections(base: type[Section] = Section) -> list[type[Section]]:
    """Those of maskloom. Other tests may have made more."""
    below = [each for section in base.__subclasses__() for each in (section, *sections(section))]
    return [each for each in below if each.__module__.startswith("maskloom.")]


@pytest.fixture(scope="module")
def keys() -> str:
    return reference.keys()


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_every_key_says_what_it_is(section: type[Section]) -> None:
    without = [name for name, field in section.model_fields.items() if not field.description]
    assert not without, f"{section.__name__}: write a docstring below each of {without}"


def test_every_key_stands_on_the_page(keys: str) -> None:
    """Those of the sections as a tree, and those of each architecture."""
    shown = set(re.findall(r"^`([\w.-]+)`", keys, re.MULTILINE))

    def below(path: str, section: type[Section]) -> set[str]:
        found = set()
        for name, field in section.model_fields.items():
            key = f"{path}{field.alias or name}"
            found.add(key)
            for held in sections():
                if held not in (Model, OptimizerSection) and re.search(rf"\b{held.__name__}\b", str(field.annotation)):
                    many = ".N" if "tuple" in str(field.annotation) else ""
                    found |= below(f"{key}{many}.", held)
        return found

    expected = below("", RunConfig) | {key for model in MODELS.values() for key in below("model.", model)}
    assert len(expected) > 100
    assert shown == expected
    assert len(re.findall(r"\{ #([\w.-]+) \}", keys)) == len(set(re.findall(r"\{ #([\w.-]+) \}", keys)))  # anchors


def test_types_and_defaults_are_in_plain_words() -> None:
    class Own(Section):
        """Of no run."""

        share: PositiveShare = 0.5
        """A share."""
        count: Few | None = None
        """A count."""
        tokens: TokenCount = 7
        """Tokens."""
        names: tuple[str, ...] = ("a", "b")
        """Names."""
        is_on: bool
        """A switch."""
        path: str = pydantic.Field(default="x", alias="from")
        """A path."""

    lines = [line for line in reference._entries("own", Own).splitlines() if line.startswith("`")]
    assert lines == [
        "`own.share`{ #own.share } number, above 0, at most 1; default `0.5`",
        "`own.count`{ #own.count } whole number, at least 1, at most 4096",
        "`own.tokens`{ #own.tokens } count of tokens, such as `50B`; default `7`",
        "`own.names`{ #own.names } list, each text; default `[a, b]`",
        "`own.is_on`{ #own.is_on } `true` or `false`; **must be given**",
        "`own.from`{ #own.from } text; default `x`",
    ]


def test_every_command_and_option_stands_on_the_page() -> None:
    text = reference.commands()
    assert re.findall(r"^## (\w+)$", text, re.MULTILINE) == list(COMMANDS)
    for words in reference.every_command():
        part = re.search(rf"^## {' '.join(words)}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        assert part and f"maskloom {' '.join(words)} " in part[1]
        for action in reference.parser_of(words)._actions:
            if action.dest in ("help", "imports"):
                continue
            assert all(option in part[1] for option in action.option_strings)
            assert not action.option_strings or (action.help or "").strip("= "), f"{words}: {action.option_strings}"
            assert action.help != argparse.SUPPRESS


def test_the_pages_have_a_marker_for_each_part() -> None:
    found = [part for path in (ROOT / "docs").glob("*.md") for part in reference.MARKER.findall(path.read_text())]
    assert sorted(found) == sorted(reference.PARTS)
    filled = reference.filled("# A\n\n<!-- reference: keys -->\n\nend")
    assert filled.startswith("# A\n\n## The run") and filled.endswith("\n\nend")
