"""`maskloom`: help with examples that parse, exit codes that tell the truth, messages without a traceback."""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import maskloom as package
from maskloom import cli, commands
from maskloom.status import Status

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
    listed = {*cli.COMMANDS, *map("_".join, cli.ACTIONS)}
    assert {name for name, module in modules.items() if hasattr(module, "configure")} == listed


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


HELP_AND_WRONG_CONFIGURATIONS = """
import sys
from maskloom import cli
from maskloom.train.__main__ import main as rank

for words in ([], *([name] for name in cli.COMMANDS), *map(list, cli.ACTIONS)):
    try:
        cli.main([*words, "--help"])
    except SystemExit as left:
        assert left.code == 0, words
wrong, run, hosts = sys.argv[1:]
for words in (["train"], ["train", "--processes", "2"], ["train", "--hostfile", hosts], ["peek"], ["status"]):
    assert cli.main([*words, wrong]) == 1, words
assert rank([wrong]) == 1
assert cli.main(["status", run]) == 0
heavy = ("torch", "transformers", "datasets", "deepspeed", "webdataset", "tensorboard", "sklearn")
print("heavy:", *(name for name in heavy if name in sys.modules))
"""


def test_help_and_a_wrong_configuration_import_nothing_heavy(tmp_path: Path) -> None:
    wrong, hosts, run = tmp_path / "wrong.yaml", tmp_path / "hosts", tmp_path / "run"
    wrong.write_text("run_dir: 1\nphase: []\n")
    hosts.write_text("localhost slots=1\n")
    run.mkdir()
    Status("done", 12, 12, 1, "", "", hosts=("host",)).write(run)
    command = [sys.executable, "-c", HELP_AND_WRONG_CONFIGURATIONS, str(wrong), str(run), str(hosts)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "heavy:"
    assert done.stderr.count("phase") >= 6


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


WITHOUT_DASHES = "settings have no dashes: write key=value, such as phases.0.steps=20"


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["trian"], "'trian' is not a command; did you mean `train`?"),
        (["xyzzy"], "'xyzzy' is not a command; `maskloom help` lists them"),
        (["help", "trian"], "'trian' is not a command; did you mean `train`?"),
        (["train", "a.yaml", "--proceses", "2"], "unrecognized arguments: --proceses 2; did you mean `--processes`?"),
        (["train", "a.yaml", "--steps", "9"], "unrecognized arguments: --steps 9; " + WITHOUT_DASHES),
        (["train", "a.yaml", "--proceses=2"], "unrecognized arguments: --proceses=2; did you mean `--processes`?"),
        (["train", "a.yaml", "--xyzzy"], "unrecognized arguments: --xyzzy; " + WITHOUT_DASHES),
        (["eval", "runs/a", "--xyzzy"], "unrecognized arguments: --xyzzy"),
    ],
)
def test_a_mistyped_word_is_answered_with_the_nearest(
    arguments: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    leaves_with(2, *arguments)
    assert capsys.readouterr().err.splitlines()[-1].endswith(f": error: {meant}")


@pytest.mark.parametrize("words", [[], ["peek"], ["tokenizer", "extend"]])
def test_help_is_a_command_too(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    leaves_with(0, "help", *words)
    printed = capsys.readouterr().out
    assert printed.startswith(" ".join(["usage: maskloom", *words, "[-h]"]))
    leaves_with(0, *words, "--help")
    assert capsys.readouterr().out == printed


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


@pytest.mark.parametrize("command", ["train", "peek", "doctor", "status", "eval"])
def test_what_is_required_is_named_and_settings_are_not(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    leaves_with(2, command)
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        f"maskloom {command}: error: the following arguments are required: (CONFIG|TARGET|RUN|MODEL)", said
    )


NOWHERE = {
    "stdout closed": ">&-",
    "stderr closed": "2>&-",
    "stdin closed": "<&-",
    "all closed": "<&- >&- 2>&-",
    "ASCII": "",
    "full": ">/dev/full",
    "full, and errors too": ">/dev/full 2>/dev/full",
}


@pytest.fixture
def through(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `maskloom ...` with its streams led elsewhere by a shell."""

    def run(streams: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        line = f"exec {shlex.join([sys.executable, '-m', 'maskloom.cli', *map(str, arguments)])} {NOWHERE[streams]}"
        environment = {**os.environ, "PYTHONIOENCODING": "ascii"} if streams == "ASCII" else None
        return subprocess.run(
            ["sh", "-c", line], capture_output=True, text=True, timeout=120, check=False, env=environment
        )

    return run


@pytest.mark.parametrize("streams", NOWHERE)
def test_work_that_is_done_is_done_wherever_the_words_go(
    streams: str, tmp_path: Path, through: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (tmp_path / "→.txt").write_text("a document of some words")
    done = through(streams, "shards", tmp_path / "→.txt", tmp_path / "out", "--val-fraction", 0, "--processes", 1)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert (tmp_path / "out" / "index.json").exists()
    assert ("\\u2192.txt" in done.stdout) == (streams == "ASCII")


@pytest.mark.parametrize("streams", NOWHERE)
def test_a_result_that_cannot_be_written_is_an_error(
    streams: str,
    run_config: dict,
    write_config: Callable[[dict], Path],
    through: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = through(streams, "peek", write_config(run_config), "--digest")
    assert done.returncode == int(streams.startswith("full"))
    full = "maskloom peek: standard output cannot be written: No space left on device. What was to be printed is lost\n"
    assert done.stderr == (full if streams == "full" else "")
    assert bool(re.fullmatch(r"[0-9a-f]{64}\n", done.stdout)) == (streams in ("stderr closed", "stdin closed", "ASCII"))


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["peek", "--help"]])
def test_help_that_cannot_be_written_is_an_error(
    arguments: list[str], through: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = through("full", *arguments)
    assert done.returncode == 1
    assert "standard output cannot be written: No space left on device" in done.stderr


@pytest.fixture
def hostile(request: pytest.FixtureRequest, run_config: dict, tmp_path: Path) -> list[object]:
    """A command that meets the name in a place where text from outside stands."""
    place, name = request.param
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(run_config))
    if place == "configuration":
        return ["peek", f"{name}.yaml"]
    if place == "setting":
        return ["peek", config, f"{name}=1"]
    if place == "value":
        config.write_text(yaml.safe_dump({**run_config, "seed": name}))
        return ["peek", config]
    if place == "key":
        config.write_text(yaml.safe_dump({**run_config, name: 1}))
        return ["peek", config]
    if place == "corpus":
        run_config["data"]["train"] = f"{tmp_path}/{name}"
        config.write_text(yaml.safe_dump(run_config))
        return ["peek", config]
    if place == "hosts":
        (tmp_path / "hosts").write_text(f"{name} slots=many\n")
        return ["doctor", config, "--hostfile", tmp_path / "hosts"]
    if place == "member":
        with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            member = tarfile.TarInfo(f"{name}.txt".replace("/", ""))
            member.size = 1
            tar.addfile(member, io.BytesIO(b"\xff"))
        return ["index", tmp_path / "a.tar", "--out", tmp_path / "index", "--processes", 1]
    if place == "object":
        (tmp_path / "a.jsonl").write_text(json.dumps({name: "text"}))
        return ["shards", tmp_path / "a.jsonl", tmp_path / "out", "--processes", 1]
    assert place == "status"
    (tmp_path / "run").mkdir()
    Status("failed", 7, 12, 3, f"it was {name}", f"look at {name}", hosts=(name,)).write(tmp_path / "run")
    return ["status", tmp_path / "run"]


@pytest.mark.parametrize(
    "hostile",
    [
        (place, name)
        for place in ("configuration", "setting", "value", "key", "corpus", "hosts", "member", "object", "status")
        for name in ("a\x1b[2J\x1b]0;title\x07", "a\u202eb\u2066", "a\x9b31m\x7f")
    ],
    indirect=True,
    ids=ascii,
)
def test_no_text_from_outside_reaches_a_terminal_as_it_is(
    hostile: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main([str(argument) for argument in hostile])
    captured = capsys.readouterr()
    assert code == int(hostile[0] != "status")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", captured.out + captured.err)
    assert re.search(r"a\\+(x1b|u202e|x9b)", captured.out + captured.err), captured.err


@pytest.mark.parametrize("place", ["command", "option"])
def test_wrong_usage_is_escaped_too(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    leaves_with(2, *(["a\x1b[2J"] if place == "command" else ["peek", "a.yaml", "--steps", "a\x1b[2J"]))
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert r"a\x1b[2J" in said
