"""`maskloom completion`: the shells themselves take the scripts, and offer what the parsers and the configuration have."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import typing
from collections.abc import Callable
from pathlib import Path

import pytest

from maskloom.cli import main
from maskloom.commands import ACTIONS, COMMANDS, load
from maskloom.commands.completion import described, settings
from maskloom.commands.shells import SHELLS
from maskloom.config import OPTIMIZERS, RunConfig, Schedule
from maskloom.config_file import config_tree

from ..conftest import missing
from .conftest import Command

TYPED = {
    "maskloom tr": ["train"],
    "maskloom --v": ["--version"],
    "maskloom help pe": ["peek"],
    "maskloom completion ": sorted(SHELLS),
    "maskloom tokenizer ext": ["extend"],
    "maskloom tokenizer extend --wor": ["--words"],
    "maskloom train --hostf": ["--hostfile"],
    "maskloom index --on-bad-data ": ["raise", "skip"],
    "maskloom train c.yaml optimizer.sched": ["optimizer.schedule="],
    "maskloom train c.yaml phases.0.st": ["phases.0.steps="],
    "maskloom train c.yaml data.train.0.pa": ["data.train.0.path="],
}
"""What is typed -> what is offered."""
ASSIGNED = {"maskloom train c.yaml optimizer.name=": sorted(OPTIMIZERS)}
"""The same for values of settings. bash takes them without the key, since it breaks words at `=`."""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The script of a shell, as a file."""
    commands, keys = described(), settings()

    def write(shell: str) -> Path:
        file = tmp_path_factory.mktemp("completion") / shell
        file.write_text(SHELLS[shell](commands, keys))
        return file

    return write


def answers(shell: str, program: str) -> str:
    """What a shell prints for a program. It reads no settings of this user."""
    if not shutil.which(shell):
        missing(shell)
    plain = {"bash": ["--noprofile", "--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    return subprocess.run([shell, *plain, "-c", program], capture_output=True, text=True, timeout=60, check=True).stdout


def test_every_command_has_its_options(script: Callable[[str], Path]) -> None:
    assert {command.name for command in described()} == {*((name,) for name in COMMANDS), *ACTIONS, ("help",)}
    words = {shell: script(shell).read_text() for shell in SHELLS}
    for command in (*((name,) for name in COMMANDS), *ACTIONS):
        _, parser = load(command)
        for flag in parser._option_string_actions:
            fish = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
            name = " ".join(command)
            assert any(f"__maskloom_at \\'{name}\\'" in line and fish in line for line in words["fish"].splitlines())
            assert any(f'"{name}")' in line and flag in line for line in words["bash"].splitlines())
            assert any(f"({shlex.quote(name)})" in line and f"*{flag}" in line for line in words["zsh"].splitlines())


def test_settings_are_those_of_the_configuration(run_config: dict) -> None:
    def leaves(tree: dict, before: str = "") -> set[str]:
        found = set()
        for key, value in tree.items():
            first = value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else None
            inner = first if first is not None else value if isinstance(value, dict) and value else None
            dotted = f"{before}{key}" + (".0" if first is not None else "")
            found |= leaves(inner, f"{dotted}.") if inner is not None else {dotted}
        return found

    keys = settings()
    for key in leaves(config_tree(RunConfig.model_validate(run_config))):  # a section may be left out, as null
        assert key in keys or any(other.startswith(f"{key}.") for other in keys), key
    assert keys["optimizer.schedule"] == typing.get_args(Schedule)
    assert keys["optimizer.lr"] == ()
    assert set(keys["engine.activation_checkpointing"]) >= {"true", "false"}


def test_bash_offers_what_fits(script: Callable[[str], Path]) -> None:
    lines = "\n".join(
        f"COMP_LINE={shlex.quote(typed)} COMP_POINT={len(typed)}; _maskloom; echo ${{COMPREPLY[*]}}"
        for typed in (*TYPED, *ASSIGNED)
    )
    offered = answers("bash", f"compopt() {{ :; }}; source {script('bash')}; {lines}").splitlines()
    expected = {**TYPED, **ASSIGNED}
    assert {typed: sorted(words.split()) for typed, words in zip(expected, offered, strict=True)} == expected


def test_bash_leaves_paths_to_itself(script: Callable[[str], Path]) -> None:
    typed = "maskloom train --hostfile "
    program = f"source {script('bash')}; complete -p maskloom; COMP_LINE='{typed}' COMP_POINT={len(typed)}; _maskloom"
    assert answers("bash", f"{program}; echo ${{#COMPREPLY[@]}}") == "complete -o default -F _maskloom maskloom\n0\n"


def test_fish_offers_what_fits(script: Callable[[str], Path], tmp_path: Path) -> None:
    asked = "; ".join(f"complete -C {shlex.quote(typed)}; echo ==" for typed in (*TYPED, *ASSIGNED))
    offered = answers("fish", f"cd {tmp_path}; source {script('fish')}; {asked}").split("==\n")
    expected = {
        **TYPED,
        **{typed: [typed.split()[-1] + value for value in values] for typed, values in ASSIGNED.items()},
    }
    assert {
        typed: sorted(line.split("\t")[0] for line in lines.splitlines())
        for typed, lines in zip(expected, offered[:-1], strict=True)
    } == expected


def test_zsh_takes_the_script(script: Callable[[str], Path]) -> None:
    file = script("zsh")
    assert file.read_text().startswith("#compdef maskloom\n")
    stubs = 'compdef() { print $* }; compadd() { print -l -- "$@" }; _arguments() { print -l -- "$@" }'
    asked = "PREFIX=optimizer.name=; _maskloom_settings; words=(maskloom index x); CURRENT=3; _maskloom"
    offered = answers("zsh", f"{stubs}; source {file}; {asked}").splitlines()
    assert offered[0] == "_maskloom maskloom"
    assert {f"optimizer.name={name}" for name in OPTIMIZERS} <= set(offered)
    (bad_data,) = [line for line in offered if line.startswith("*--on-bad-data=[")]
    assert bad_data.endswith(":(raise skip)")


def test_the_command_prints_a_script(succeeds: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert succeeds("completion", "fish").startswith("# Made by `maskloom completion fish`")
    with pytest.raises(SystemExit):
        main(["completion", "tcsh"])
    assert "tcsh" in capsys.readouterr().err
