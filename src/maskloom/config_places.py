"""Where the settings of a configuration stand: in which line of its file, or on the command line.

A fault names its place, so that nobody has to search. Places are looked up once a fault is found: reading does not count lines.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from maskloom.plain_yaml import Path, key_lines

COMMAND_LINE = "command line: "
LAST = 1 << 30
NAMED = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*")
INSIDE = re.compile(r"(?:Value error, )?(?:'((?:[^'\\]|\\.)*)'|([0-9]+)): ")


class Place(NamedTuple):
    """Where something stands: `order` sorts by line, and `said` begins a message."""

    order: int
    said: str


NOWHERE = Place(LAST, "")


@dataclass
class Places:
    """The places of the settings of one configuration.

    Attributes:
        text: of its file.
        set_later: the keys that `key=value` on the command line set.
    """

    text: str = ""
    set_later: list[Path] = field(default_factory=list)

    @cached_property
    def lines(self) -> dict[Path, int]:
        return key_lines(self.text) if self.text else {}

    def of(self, path: Path, message: str = "") -> Place:
        """The place of a fault in the setting at `path`. A message may name other keys, below `path` or from the top."""
        found = list(dict.fromkeys(self._named(path, message))) or [path]
        if any(self._is_set_later(each) for each in found):
            return Place(LAST - 1, COMMAND_LINE)
        lines = sorted({line for each in found if (line := self._line(each))})
        if not lines:
            return NOWHERE
        return Place(lines[0], f"line{'s' * (len(lines) > 1)} {_listed(lines)}: ")

    def _named(self, path: Path, message: str) -> list[Path]:
        """The settings that a message names, if they are in the configuration."""
        found = []
        for match in NAMED.finditer(message):
            parts = _path(match[0])
            # A single word may be English. Its underscore, or its place at the beginning, says that it is a key.
            if len(parts) == 1 and "_" not in match[0] and match.start():
                continue
            found += [each for each in (path + parts, parts) if each in self.lines or each in self.set_later][:1]
        return found

    def _is_set_later(self, path: Path) -> bool:
        return any(path[: len(each)] == each for each in self.set_later)

    def _line(self, path: Path) -> int | None:
        """The line of a key, or of the nearest section around it."""
        return next((self.lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self.lines), None)


def inside(path: Path, message: str) -> tuple[Path, str]:
    """The path of the value that a message about `path` is about, and the rest of the message: it may begin with `'key': `."""
    while match := INSIDE.match(message):
        path = (*path, match[1] if match[1] is not None else int(match[2]))
        message = message[match.end() :]
    return path, message


def _path(key: str) -> Path:
    return tuple(int(part) if part.isdecimal() else part for part in key.split("."))


def override_path(override: str) -> Path:
    """The path of the setting that `key=value` sets."""
    return _path(override.partition("=")[0].strip())


def in_order(faults: Sequence[tuple[Place, str]]) -> list[str]:
    """Faults with their places, sorted by line; those of the command line come behind, those without a place last."""
    return [f"{place.said}{fault}" for place, fault in sorted(faults, key=lambda each: each[0].order)]


def _listed(lines: Sequence[int]) -> str:
    return " and ".join([*([", ".join(map(str, lines[:-1]))] if lines[1:] else []), str(lines[-1])])
