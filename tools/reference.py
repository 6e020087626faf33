"""The reference pages, made from the code: every key of a configuration, every command.

    config*.py (types, defaults, docstrings below the fields)  ->  docs/configuration.md
    commands/*.py (parsers)                                    ->  docs/commands.md

The pages in docs/ have a marker such as `<!-- reference: keys -->`, and `filled` puts the text in its place. tools/site.py does
so while the site is built. So what the site says is never older than the code.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import re
import textwrap
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import yaml
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from maskloom.commands import ACTIONS, COMMANDS, load
from maskloom.config import MODELS, Model, RunConfig, Section
from maskloom.scalars import TokenCount

MARKER = re.compile(r"^<!-- reference: (\w+) -->$", re.MULTILINE)
LARGEST_SHOWN = 100_000
"""Larger limits only catch mistakes of typing, and are not shown."""


def filled(markdown: str) -> str:
    """The page with the text of each marker in its place."""
    return MARKER.sub(lambda marker: PARTS[marker[1]](), markdown)


# ------------------------------------------------------------------------------------------------ keys of a configuration


def keys() -> str:
    """A heading for each section, and below it an entry for each key."""
    parts = [f"## The run\n\n{_entries('', RunConfig)}"]
    for name, field in RunConfig.model_fields.items():
        if name != "model":
            parts += [_section(path, section) for path, section in _sections(name, field.annotation)]
        else:
            parts += _architectures()
    return "\n\n".join(parts)


def _sections(path: str, annotation: Any) -> Iterator[tuple[str, type[Section]]]:
    """The sections that a key holds, with the paths of their keys. `N` stands for the number of an item."""
    if get_origin(annotation) is tuple:
        path += ".N"
    if inspect.isclass(annotation) and issubclass(annotation, Section):
        yield path, annotation
        for name, field in annotation.model_fields.items():
            yield from _sections(f"{path}.{name}", field.annotation)
    else:
        for part in get_args(annotation):
            yield from _sections(path, part)


def _section(path: str, section: type[Section]) -> str:
    about = inspect.cleandoc(section.__doc__ or "") if "__doc__" in vars(section) else ""
    depth = 2 + path.replace(".N", "").count(".")
    return f"{'#' * depth} `{path}` {{ #{path} }}\n\n{about}\n\n{_entries(path, section)}"


def _architectures() -> list[str]:
    """The keys of all models, then those of each architecture. One with the keys of another says so."""
    parts = [f"## `model` {{ #model }}\n\nThese are for every architecture.\n\n{_entries('model', Model)}"]
    shown: dict[str, type[Model]] = {}
    for name, section in MODELS.items():
        like = next((other for other, known in shown.items() if _differing(section, known) <= {"architecture"}), None)
        about = inspect.cleandoc(section.__doc__ or "")
        if like:
            entries = f"The keys and defaults of [`{like}`](#architecture-{like})."
        else:
            own = _differing(section, Model) - {"architecture"}
            entries = _entries("model", section, own, prefix=f"{name}.")
        parts.append(f"### `architecture: {name}` {{ #architecture-{name} }}\n\n{about}\n\n{entries}")
        shown[name] = section
    return parts


def _differing(section: type[Section], other: type[Section]) -> set[str]:
    """The fields of a section that another lacks, or has with another type, default or docstring."""

    def facts(field: FieldInfo | None) -> object:
        return field and (field.annotation, field.default, field.description, field.metadata)

    return {name for name, field in section.model_fields.items() if facts(field) != facts(other.model_fields.get(name))}


def _entries(path: str, section: type[Section], only: set[str] | None = None, prefix: str = "") -> str:
    """A term and a definition for each key. The term has the key as its anchor."""
    found = []
    for name, field in section.model_fields.items():
        key = ".".join(filter(None, (path, field.alias or name)))
        if only is None or name in only:
            kind, default = _field_type(field, key), _default(field)
            text = " ".join((field.description or "").split())
            anchor = "" if kind.startswith("[section") else f"{{ #{prefix}{key} }}"  # its heading has the name
            found.append(f"`{key}`{anchor} {kind}{default}\n:   {text}")
    return "\n\n".join(found)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "; **must be given**"
    if value is None or value == "" or isinstance(value, Section):
        return ""
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")
    return f"; default `{text}`"


def _field_type(field: FieldInfo, key: str) -> str:
    limits = [limit for limit in field.metadata if isinstance(limit, annotated_types.BaseMetadata)]
    return _type(field.annotation, key, limits)


def _type(annotation: Any, key: str, limits: list[Any]) -> str:
    """A type in plain words, such as "whole number, at least 1"."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        given = [part for limit in inner[1:] for part in (limit.metadata if isinstance(limit, FieldInfo) else [limit])]
        return _type(inner[0], key, given)
    if origin in (Union, types.UnionType):
        kinds = [_type(part, key, limits) for part in inner if part is not type(None)]
        return " or ".join(dict.fromkeys(kinds))
    if origin is Literal:
        return "one of " + ", ".join(f"`{choice}`" for choice in inner)
    if origin is tuple:
        if inspect.isclass(inner[0]) and issubclass(inner[0], Section):
            return f"list of [sections](#{key}.N)"
        return f"list, each {_type(inner[0], key, [])}"
    if inspect.isclass(annotation) and issubclass(annotation, Section):
        return f"[section](#{key})"
    names: dict[Any, str] = {
        bool: "`true` or `false`",
        int: "whole number",
        float: "number",
        str: "text",
        TokenCount: "count of tokens, such as `50B`",
    }
    return names.get(annotation, "settings") + _limits(limits)


def _limits(limits: list[Any]) -> str:
    """Such as ", above 0, at most 1"."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    said = [(word, getattr(limit, name)) for limit in limits for name, word in words.items() if hasattr(limit, name)]
    return "".join(f", {word} {value:g}" for word, value in said if abs(value) <= LARGEST_SHOWN)


# ------------------------------------------------------------------------------------------------------------- commands


def commands() -> str:
    """A heading for each command, with its own description, usage, example and options."""
    return "\n\n".join(_command(words) for words in every_command())


def every_command() -> list[tuple[str, ...]]:
    """The words of each command, in the order of `maskloom --help`."""
    found: list[tuple[str, ...]] = []
    for name in COMMANDS:
        found += [(name,), *sorted(words for words in ACTIONS if words[0] == name)]
    return found


@functools.cache
def parser_of(words: tuple[str, ...]) -> argparse.ArgumentParser:
    """The parser of a command, as `maskloom` makes it."""
    _, parser = load(words)
    parser.formatter_class = functools.partial(argparse.HelpFormatter, width=88)
    return parser


def _command(words: tuple[str, ...]) -> str:
    parser = parser_of(words)
    text, _, examples = re.sub(r"^examples?:$", "\0", parser.description or "", flags=re.MULTILINE).partition("\0")
    usage = parser.format_usage().removeprefix("usage: ").rstrip()
    parts = [
        f"## {' '.join(words)}",
        _prose(text),
        f"```sh\n{textwrap.dedent(examples).strip()}\n```",
        f'```text title="Usage"\n{textwrap.dedent(usage)}\n```',
        "\n\n".join(
            _argument(parser, action, words)
            for action in parser._actions
            if action.help and action.dest not in ("help", "imports")
        ),
    ]
    return "\n\n".join(parts)


def _argument(parser: argparse.ArgumentParser, action: argparse.Action, words: tuple[str, ...]) -> str:
    """A term and a definition of an argument or an option."""
    formatter = parser._get_formatter()
    name = formatter._format_action_invocation(action)
    said = _escaped(formatter._expand_help(action))
    anchor = "-".join((*words, action.dest))
    return f"`{name}`{{ #{anchor} }}\n:   {said}"


def _prose(text: str) -> str:
    """The description of a command as Markdown. Indented lines are items of a list, or commands."""
    parts = []
    for paragraph in text.strip().split("\n\n"):
        lines = paragraph.split("\n")
        for is_list, group in _runs(lines):
            shown = textwrap.dedent("\n".join(group))
            if is_list and not shown.startswith("maskloom "):
                parts.append("\n".join(f"- {_escaped(item)}" for item in re.split(r"\n(?! )", shown)))
            else:
                parts.append(f"```sh\n{shown}\n```" if is_list else _escaped(shown))
    return "\n\n".join(parts)


def _runs(lines: list[str]) -> Iterator[tuple[bool, list[str]]]:
    """Neighbouring lines that are indented, or are not."""
    held: list[str] = []
    for line in lines:
        if held and held[-1].startswith("  ") != line.startswith("  "):
            yield held[0].startswith("  "), held
            held = []
        held.append(line)
    if held:
        yield held[0].startswith("  "), held


def _escaped(text: str) -> str:
    """Plain text as Markdown, but code in backticks stays code."""
    pieces = re.split(r"(`[^`]+`)", text)
    return "".join(piece if piece.startswith("`") else re.sub(r"([\\*_<\[\]])", r"\\\1", piece) for piece in pieces)


PARTS = {"keys": keys, "commands": commands}
