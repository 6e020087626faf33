"""Print what lets a shell complete commands, options, files and `key=value` settings. It starts no Python when a key is pressed.

It is made from the parsers and the configuration of this version: make it again after an upgrade.
  bash   add `source <(maskloom completion bash)` to ~/.bashrc, or write it to
         ~/.local/share/bash-completion/completions/maskloom
  zsh    write it to a file `_maskloom` in a folder of $fpath, or `source <(maskloom completion zsh)` after `compinit`
  fish   write it to ~/.config/fish/completions/maskloom.fish

example:
  maskloom completion bash
"""

from __future__ import annotations

import argparse
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydantic

from maskloom.commands import ACTIONS, COMMANDS, load
from maskloom.commands.shells import SHELLS, Command, Option
from maskloom.config import MODELS, OPTIMIZERS, Model, RunConfig
from maskloom.progress import show

PATHS = {
    "CONFIG",
    "RUN",
    "MODEL",
    "INPUT",
    "OUT",
    "TAR",
    "CORPUS",
    "DATA",
    "TARGET",
    "TOK",
    "TOKENIZER",
    "FILE",
    "FOLDER",
}
"""Names of values that are paths, if the type does not say so."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=sorted(SHELLS), help="the shell that shall complete")


def run(options: argparse.Namespace) -> int:
    show(SHELLS[options.shell](described(), settings()).rstrip("\n"))
    return 0


def described() -> list[Command]:
    """Every command, as its parser has it, and `help`."""
    found = [_described((name,), summary) for name, summary in COMMANDS.items()]
    found += [_described(words, "") for words in sorted(ACTIONS)]
    return [*found, Command(("help",), "options and an example of a command", words=tuple(COMMANDS))]


def _described(words: tuple[str, ...], summary: str) -> Command:
    _, parser = load(words)
    options, choices, takes_settings = [], [a[1] for a in sorted(ACTIONS) if a[:-1] == words], False
    for action in parser._actions:
        if action.option_strings:
            options.append(_option(action, parser.prog))
        elif action.choices:
            choices += map(str, action.choices)
        else:
            takes_settings |= action.metavar == "key=value"
    return Command(words, summary, tuple(options), tuple(choices), takes_settings)


def _option(action: argparse.Action, program: str) -> Option:
    takes_value = action.nargs != 0
    text = (action.help or "") % {**vars(action), "prog": program}
    is_path = action.type is Path or getattr(action.type, "__name__", "") == "local_folder" or action.metavar in PATHS
    return Option(
        flags=tuple(action.option_strings),
        help=" ".join(text.split()),
        value=(str(action.metavar or action.dest.upper()) if takes_value else ""),
        choices=tuple(map(str, action.choices or ())),
        is_path=takes_value and is_path,
    )


def settings() -> dict[str, tuple[str, ...]]:
    """The keys of a configuration, such as `optimizer.lr`, and the values that they take if these are few. Lists have their first
    item: `phases.0.steps`."""
    found: dict[str, tuple[str, ...]] = {}
    for key, values in _settings(RunConfig, ""):
        found[key] = tuple(dict.fromkeys((*found.get(key, ()), *values)))
    return {**found, "optimizer.name": tuple(OPTIMIZERS)}


def _settings(section: type[pydantic.BaseModel], before: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for name, field in section.model_fields.items():
        key = f"{before}{field.alias or name}"
        parts = list(_parts(field.annotation))
        values = tuple(value for part in parts for value in part.values)
        sections = [(inner, part.is_item) for part in parts for inner in part.sections]
        if not sections or values or any(part.is_plain for part in parts):
            yield key, values
        for inner, is_item in sections:
            yield from _settings(inner, f"{key}.0." if is_item else f"{key}.")


@dataclass(frozen=True)
class _Part:
    """A kind of value that a field may have."""

    values: tuple[str, ...] = ()
    sections: tuple[type[pydantic.BaseModel], ...] = ()
    is_item: bool = False
    is_plain: bool = False


def _parts(annotation: object, is_item: bool = False) -> Iterator[_Part]:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        yield _Part(tuple(map(str, inner)), is_item=is_item)
    elif origin is typing.Annotated:
        yield from _parts(inner[0], is_item)
    elif origin in (tuple, list):
        yield from _parts(inner[0], is_item=True)
    elif inner and origin is not dict:
        for each in inner:
            yield from _parts(each, is_item)
    elif annotation is bool:
        yield _Part(("true", "false"))
    elif annotation is Model:  # the keys of all architectures
        yield _Part(sections=tuple(MODELS.values()))
    elif isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        yield _Part(sections=(annotation,), is_item=is_item)
    elif annotation is not type(None):
        yield _Part(is_plain=not is_item)
