"""`maskloom`: help with examples that parse, exit codes that tell the truth, messages without a traceback."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import maskloom as package
from maskloom import cli, commands

Maskloom = Callable[..., subprocess.CompletedProcess[str]]


def leaves_with(code: int, *arguments: str) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(list(arguments))
    assert left.value.code == code


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    leaves_with(0, "--help")
    printed = capsys.readouterr().out
    for name, summary in cli.COMMANDS.items():
        assert f"{name} " in printed
        assert summary in printed


def test_every_command_module_is_listed() -> None:
    names = {module.name for module in pkgutil.iter_modules(commands.__path__)}
    modules = {name: importlib.import_module(f"maskloom.commands.{name}") for name in names}
    assert {name for name, module in modules.items() if hasattr(module, "configure")} == cli.COMMANDS.keys()


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_a_command_shows_an_example_that_it_takes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    leaves_with(0, name, "--help")
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: maskloom {name} ")
    _, after = re.split(r"examples?:\n", printed)
    examples = [line for line in after.split("\n\n")[0].splitlines() if line.strip()]
    assert examples
    for line in examples:
        example = shlex.split(line.replace("$SLURM_ARRAY_TASK_ID", "1"), comments=True)
        if example[0] == "sbatch":
            example = shlex.split(example[-1])
        assert example[:2] == ["maskloom", name]
        parser = argparse.ArgumentParser(exit_on_error=False)
        importlib.import_module(f"maskloom.commands.{name}").configure(parser)
        parser.parse_intermixed_args(example[2:])  # leaves with SystemExit where it does not fit


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    leaves_with(0, "--version")
    assert capsys.readouterr().out == f"maskloom {package.__version__}\n"


@pytest.mark.parametrize("arguments", [["pek"], ["peek"], ["peek", "a.yaml", "--wurld", "2"]])
def test_wrong_usage_leaves_with_2_and_says_how(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    leaves_with(2, *arguments)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: maskloom")
    assert "error: " in captured.err


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "commands:\n  shards" in capsys.readouterr().err


def test_a_users_fault_is_one_message_and_1(maskloom: Maskloom, tmp_path: Path) -> None:
    done = maskloom("peek", tmp_path / "absent.yaml")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"maskloom peek: no configuration file {tmp_path / 'absent.yaml'}\n"


def test_a_folder_that_cannot_be_written_is_one_message_and_1(
    documents: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text(documents[0])
    out = tmp_path / "text.txt" / "below"  # below a file
    assert cli.main(["shards", str(tmp_path / "text.txt"), str(out), "--processes", "1"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("maskloom shards: ")
    assert str(tmp_path / "text.txt") in message
    assert message.count("\n") == 1


def test_a_reader_that_leaves_early_ends_it_quietly(run_config: dict, write_config: Callable[[dict], Path]) -> None:
    command = [sys.executable, "-m", "maskloom.cli", "peek", str(write_config(run_config))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()  # before it has imported what it needs to print a line
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (1, "")
