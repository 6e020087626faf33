"""The scripts that bash, zsh and fish complete `maskloom` with, as text.

Each script holds all words and asks nobody: a key press costs the shell alone. A path is completed by the shell itself.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from maskloom import __version__

Settings = Mapping[str, tuple[str, ...]]
"""Key of the configuration -> its values, if they are few."""


@dataclass(frozen=True)
class Option:
    """An option of a command."""

    flags: tuple[str, ...]
    help: str
    value: str = ""
    """Name of the value; empty if it takes none."""
    choices: tuple[str, ...] = ()
    is_path: bool = False


@dataclass(frozen=True)
class Command:
    """A command: its words, and what may follow them."""

    name: tuple[str, ...]
    summary: str
    options: tuple[Option, ...] = ()
    words: tuple[str, ...] = ()
    """Words that it takes as an argument, apart from paths."""
    takes_settings: bool = False

    @property
    def takes_paths(self) -> bool:
        return self.name not in (("help",), ("completion",))


TOP = ("--help", "--version")


def _note(shell: str) -> str:
    return f"# Made by `maskloom completion {shell}` of maskloom {__version__}. Make it again after an upgrade."


def _assigned(settings: Settings) -> tuple[list[str], list[str]]:
    """`key=` for every key, and `key=value` for those whose values are few."""
    return [f"{key}=" for key in settings], [f"{key}={value}" for key, values in settings.items() for value in values]


def _pairs(commands: Sequence[Command]) -> list[tuple[str, Option]]:
    return [
        (f"{' '.join(command.name)} {flag}", option)
        for command in commands
        for option in command.options
        for flag in option.flags
    ]


def _listed(words: Iterable[str]) -> str:
    return shlex.quote(" ".join(words))


# bash breaks words at `=`, so the words are taken from the line. `-o default` completes a path if nothing was found.
BASH = r"""{note}
_maskloom() {{
    local line=${{COMP_LINE:0:COMP_POINT}} command previous current
    local -a words
    read -ra words <<< "$line"
    [[ $line == *[[:blank:]] ]] && words+=("")
    current=${{words[-1]}} previous=${{words[-2]}} command=${{words[1]}}
    COMPREPLY=()
    if (( ${{#words[@]}} <= 2 )); then
        _maskloom_offer {top}
        return
    fi
    case "${{words[1]}} ${{words[2]}}" in
    {actions}) (( ${{#words[@]}} > 3 )) && command="${{words[1]}} ${{words[2]}}" ;;
    esac
    if [[ $current == --*=* ]]; then
        previous=${{current%%=*}} current=${{current#*=}}
    fi
    case "$command $previous" in
{values}
    esac
    if [[ $current == -* ]]; then
        case $command in
{flags}
        esac
        return
    fi
    case $command in
{words}
    {settings})
        if [[ $current == *=* ]]; then
            _maskloom_offer {assigned}
        elif (( ${{#words[@]}} > 3 )); then
            _maskloom_offer {keys}
        fi ;;
    esac
}}

_maskloom_offer() {{
    mapfile -t COMPREPLY < <(compgen -W "$1" -- "$current")
    [[ ${{COMPREPLY[0]-}} == *= ]] && compopt -o nospace
    if [[ $current == *=* && $COMP_WORDBREAKS == *=* ]]; then
        COMPREPLY=("${{COMPREPLY[@]#"${{current%%=*}}="}}")
    fi
    return 0
}}

complete -o default -F _maskloom maskloom
"""


def bash(commands: Sequence[Command], settings: Settings) -> str:
    """The script for bash, 4.4 or later."""
    keys, assigned = _assigned(settings)
    single = [command for command in commands if len(command.name) == 1]
    values = []
    for name, option in _pairs(commands):
        if option.choices:
            values.append(f'    "{name}") _maskloom_offer {_listed(option.choices)}; return ;;')
        elif option.is_path:
            values.append(f'    "{name}") return ;;')
        elif option.value:
            values.append(f'    "{name}") compopt +o default; return ;;')
    flags, words = [], []
    for command in commands:
        own = (flag for option in command.options for flag in option.flags)
        flags.append(f'        "{" ".join(command.name)}") _maskloom_offer {_listed(own)} ;;')
        if command.words and command.takes_paths:  # beside paths, and not instead of them
            words.append(
                f'    "{" ".join(command.name)}") [[ $current ]] && _maskloom_offer {_listed(command.words)} ;;'
            )
        elif command.words:
            words.append(f'    "{" ".join(command.name)}") _maskloom_offer {_listed(command.words)} ;;')
    return BASH.format(
        note=_note("bash"),
        top=_listed([*(command.name[0] for command in single), *TOP]),
        actions=" | ".join(f'"{" ".join(command.name)}"' for command in commands if len(command.name) > 1),
        values="\n".join(values),
        flags="\n".join(flags),
        words="\n".join(words),
        settings=" | ".join(command.name[0] for command in commands if command.takes_settings),
        keys=_listed(keys),
        assigned=_listed(assigned),
    )


ZSH = r"""#compdef maskloom
{note}
_maskloom_settings() {{
    if [[ $PREFIX == *=* ]]; then
        compadd -- {assigned}
    else
        _alternative 'settings:setting:compadd -S "" -- {keys}' 'files:file:_files'
    fi
}}

_maskloom() {{
    local command=$words[2]
    if (( CURRENT == 2 )); then
        local -a commands=({summaries})
        _describe command commands -- && return
        compadd -- {top}
        return
    fi
    case "$words[2] $words[3]" in
    ({actions}) if (( CURRENT > 3 )); then command="$words[2] $words[3]"; shift words; (( CURRENT-- )); fi ;;
    esac
    shift words
    (( CURRENT-- ))
    case $command in
{cases}
    esac
}}

if [[ $funcstack[1] == _maskloom ]]; then
    _maskloom "$@"
else
    compdef _maskloom maskloom
fi
"""


def zsh(commands: Sequence[Command], settings: Settings) -> str:
    """The script for zsh, as an autoloaded function or to be sourced."""
    keys, assigned = _assigned(settings)
    single = [command for command in commands if len(command.name) == 1]
    summaries = (f"{command.name[0]}:{command.summary}" for command in single)
    return ZSH.format(
        note=_note("zsh"),
        keys=" ".join(keys),
        assigned=" ".join(map(shlex.quote, assigned)),
        summaries=" ".join(map(shlex.quote, summaries)),
        top=" ".join(TOP),
        actions="|".join(shlex.quote(" ".join(command.name)) for command in commands if len(command.name) > 1),
        cases="\n".join(
            f"    ({shlex.quote(' '.join(command.name))}) _arguments {_of_zsh(command)} ;;" for command in commands
        ),
    )


def _of_zsh(command: Command) -> str:
    told = str.maketrans({character: f"\\{character}" for character in "\\[]:"})
    specs = []
    for option in command.options:
        action = f"({' '.join(option.choices)})" if option.choices else "_files" if option.is_path else " "
        value = f":{option.value.translate(told)}:{action}" if option.value else ""
        for flag in option.flags:
            equals = "=" if value and flag.startswith("--") else ""
            specs.append(f"*{flag}{equals}[{option.help.translate(told)}]{value}")
    if command.words and command.takes_paths:
        words = f"_alternative 'words:word:({' '.join(command.words)})' 'files:file:_files'"
        specs += [f"1:argument:{{{words}}}", "*:file:_files"]
    elif command.words:
        specs.append(f"1:argument:({' '.join(command.words)})")
    elif command.takes_settings:
        specs += ["1:file:_files", "*:setting:_maskloom_settings"]
    else:
        specs.append("*:file:_files")
    return " ".join(map(shlex.quote, specs))


FISH = r"""{note}
# Whether the command line is at this command; "" is before any.
function __maskloom_at
    set -l words (commandline -opc) '' ''
    set -l at "$words[2]"
    if contains -- "$words[2] $words[3]" {actions}
        set at "$words[2] $words[3]"
    end
    test "$at" = "$argv[1]"
end

function __maskloom_sets
    string match -q -- '*=*' (commandline -ct)
end

{lines}
"""


def fish(commands: Sequence[Command], settings: Settings) -> str:
    """The script for fish."""
    keys, assigned = _assigned(settings)
    lines = [_of_fish("", "-f -l help"), _of_fish("", "-f -l version")]
    for command in commands:
        name = " ".join(command.name)
        if len(command.name) == 1:
            lines.append(_of_fish("", f"-f -a {name} -d {_fish(command.summary)}"))
        for option in command.options:
            flags = " ".join(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags)
            takes = (
                f" -x -a {_fish(' '.join(option.choices))}" if option.choices else " -r -F" if option.is_path else " -x"
            )
            lines.append(_of_fish(name, f"{flags}{takes if option.value else ''} -d {_fish(option.help)}"))
        if command.words:
            lines.append(_of_fish(name, f"{'' if command.takes_paths else '-f '}-a {_fish(' '.join(command.words))}"))
        if command.takes_settings:
            lines.append(_of_fish(f"{name}", f"-a {_fish(' '.join(keys))}", "; and not __maskloom_sets"))
            lines.append(_of_fish(f"{name}", f"-a {_fish(' '.join(assigned))}", "; and __maskloom_sets"))
    actions = " ".join(_fish(" ".join(command.name)) for command in commands if len(command.name) > 1)
    return FISH.format(note=_note("fish"), actions=actions, lines="\n".join(lines))


def _of_fish(name: str, rest: str, also: str = "") -> str:
    return f"complete -c maskloom -n {_fish(f'__maskloom_at {_fish(name)}{also}')} {rest}"


def _fish(text: str) -> str:
    """The text in fish's single quotes, in which a backslash protects a quote and a backslash."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SHELLS = {"bash": bash, "fish": fish, "zsh": zsh}
"""Shell -> what makes its script."""
