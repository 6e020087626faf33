"""What the pages tell people to type can be typed: each command is read by its own parser, and the files that it names exist.

`integration/test_pages.py` runs the blocks that can run.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import doctest
import importlib.util
import io
import re
import tomllib
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import yaml
from tools import reference

from maskloom.commands import ACTIONS, COMMANDS
from maskloom.config import MODELS, RunConfig
from maskloom.config_file import apply_override, load_config, parse_config
from maskloom.errors import UserError
from maskloom.plain_yaml import read_yaml
from tests.page_blocks import PAGES, ROOT, Block, blocks, commands

SHELLS = {"sh", "bash", "shell", "console"}
FOLDERS = ("src", "tests", "docs", "configs", "tools", "examples", "launcher", "docker", "benchmarks", ".ci")
SLURM = set(
    "account array chdir constraint cpus-per-gpu cpus-per-task dependency error exclude exclusive export gpus gpus-per-node "
    "gpus-per-task gres hint job-name kill-on-bad-exit mail-type mail-user mem mem-per-cpu mem-per-gpu network nice nodelist "
    "nodes ntasks ntasks-per-node open-mode output overlap partition qos requeue reservation signal time wait wrap".split()
)
"""Long options of sbatch and srun (Slurm 24.05)."""
TREE: dict[str, Any] = {
    "run_dir": "runs/x",
    "tokenizer": "t",
    "data": {"train": "d"},
    "phases": [{"steps": 10_000_000}],
}
"""A whole configuration, for a block that holds a part of one."""


def parsed(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return parser.parse_intermixed_args(arguments)
    except SystemExit:
        raise AssertionError(said.getvalue()) from None


def check_overrides(config: str, overrides: Sequence[str]) -> None:
    """The keys exist, and the values go with the file, if it is one of the repository."""
    real = [each for each in overrides if each not in ("key=value", "...")]
    assert all("=" in each for each in real), f"{real}: not key=value"
    if (ROOT / config).is_file():
        load_config(ROOT / config, real)
    else:
        tree: dict[str, object] = yaml.safe_load(yaml.safe_dump(TREE))
        for each in real:
            apply_override(tree, each)
        parse_config(tree, config)


def check_maskloom(words: Sequence[str]) -> None:
    if words[0] in ("--help", "--version", "COMMAND"):
        return
    assert words[0] in COMMANDS, f"maskloom {words[0]} is not a command"
    many = 2 if (words[0], *words[1:2]) in ACTIONS else 1
    options = parsed(reference.parser_of(tuple(words[:many])), [word for word in words[many:] if word != "..."])
    overrides = getattr(options, "overrides", None) or []
    target = next((getattr(options, name) for name in ("config", "target", "run") if hasattr(options, name)), "")
    check_overrides(str(target), overrides)


def check_rank(words: Sequence[str]) -> None:
    """`maskloom.train CONFIG key=value`, as each launcher starts it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("--profile", type=int)
    parser.add_argument("--out")
    parser.add_argument("--import")
    parser.add_argument("overrides", nargs="*", default=[])
    options = parsed(parser, words)
    check_overrides(options.config, options.overrides)


def check_python(words: Sequence[str]) -> None:
    """A module or a file of ours, whose source has each long option."""
    if words[:1] == ["-m"]:
        module = words[1]
        if module == "maskloom.train":
            return check_rank(words[2:])
        if module == "maskloom.cli":
            return check_maskloom(words[2:])
        assert module in ("venv", "pip", "build", "pytest", "http.server") or importlib.util.find_spec(module), module
    elif words and re.match(rf"(?:{'|'.join(FOLDERS)})/", words[0]):
        file = ROOT / words[0]
        beside = [*file.with_suffix("").rglob("*.py")] if file.with_suffix("").is_dir() else []
        source = "".join(path.read_text() for path in (file, *beside))
        for option in (word.partition("=")[0] for word in words[1:] if word.startswith("--")):
            assert f'"{option}"' in source, f"{words[0]} has no {option}"
    return None


def check_deepspeed(words: Sequence[str]) -> None:
    from deepspeed.launcher.runner import parse_args

    options = parse_args(list(words))
    assert options.module and options.user_script == "maskloom.train"
    check_rank(options.user_args)


def check_torchrun(words: Sequence[str]) -> None:
    from torch.distributed.run import get_args_parser

    options = get_args_parser().parse_args(list(words))
    assert options.module and options.training_script == "maskloom.train"
    check_rank(options.training_script_args)


def check_slurm(words: Sequence[str]) -> None:
    own, given = [], list(words)
    while given and given[0].startswith("-"):
        own.append(given.pop(0))
    for option in own:
        name = re.match(r"--([\w-]+)(=.+)?$", option)
        assert name and name[1] in SLURM, f"{option} is not an option of Slurm, or its value is not behind a ="
        if name[1] == "wrap":
            for command in commands(option.partition("=")[2]):
                check(command)
    if given:
        check(given)


def check_make(words: Sequence[str]) -> None:
    text = (ROOT / "Makefile").read_text()
    for word in words:
        name, is_set, value = word.partition("=")
        assert re.search(rf"^{name} *\?=" if is_set else rf"^{re.escape(name)}:", text, re.MULTILINE), f"make {word}"
        assert name != "CONFIG" or (ROOT / value).exists()


def check_pip(words: Sequence[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extras in re.findall(r"(?:maskloom|\.)\[([\w,-]+)\]", " ".join(words)):
        assert set(extras.split(",")) <= project["optional-dependencies"].keys(), f"pip install maskloom[{extras}]"


CHECKS: dict[str, Callable[[Sequence[str]], None]] = {
    "maskloom": check_maskloom,
    "python": check_python,
    "python3": check_python,
    "deepspeed": check_deepspeed,
    "torchrun": check_torchrun,
    "sbatch": check_slurm,
    "srun": check_slurm,
    "make": check_make,
    "pip": check_pip,
    "launcher/deepspeed.sh": lambda words: check_maskloom(["train", *words]),
    "launcher/slurm.sbatch": check_rank,
}


def check(words: Sequence[str]) -> None:
    """Raises AssertionError or UserError for a command that cannot be typed so."""
    words = [re.sub(r"\$\{?\w+\}?", "1", word) for word in words]  # the value of a variable
    name = words[0].removeprefix(".venv/bin/").removeprefix("./")
    if name in CHECKS:
        CHECKS[name](words[1:])
    for word in words:
        if re.match(rf"(?:\./)?(?:{'|'.join(map(re.escape, FOLDERS))})/[\w./-]+$", word) and ".cache" not in word:
            assert (ROOT / word).exists(), f"{word} does not exist"


@pytest.mark.parametrize("page", PAGES)
def test_commands_can_be_typed(page: str) -> None:
    faults = []
    for block in blocks(page):
        for words in commands(block.text) if block.language in SHELLS else ():
            try:
                check(words)
            except Exception as error:
                faults.append(f"{block}: {' '.join(words)}: {error}")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("page", PAGES)
def test_python_compiles(page: str) -> None:
    for block in blocks(page):
        if block.language in ("python", "py"):
            examples = doctest.DocTestParser().get_examples(block.text)
            for source in [example.source for example in examples] or [block.text]:
                compile(source, str(block), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def is_configuration(tree: Any) -> bool:
    names = {field.alias or name for name, field in RunConfig.model_fields.items()}
    return isinstance(tree, dict) and bool(tree.keys() & names)


def check_configuration(block: Block) -> None:
    """A whole one as it is. A part is completed, and has to go with some architecture."""
    given = read_yaml(block.text, str(block))
    assert isinstance(given, dict)
    whole = {**TREE, **given, "data": {**TREE["data"], **(given.get("data") or {})}}
    faults = []
    for name in MODELS:
        try:
            parse_config({"model": {"architecture": name}, **whole}, str(block))
            return
        except UserError as error:
            faults.append(str(error))
    raise AssertionError("\n".join(faults))


@pytest.mark.parametrize("page", PAGES)
def test_configurations_are_accepted(page: str) -> None:
    for block in blocks(page):
        if block.language in ("yaml", "yml") and is_configuration(yaml.safe_load(block.text)):
            check_configuration(block)


def test_a_wrong_command_is_found() -> None:
    """Each kind of check sees a fault of its kind."""
    for line in (
        "maskloom trian CONFIG",
        "maskloom train CONFIG --no-such-option",
        "maskloom train CONFIG optimizer.rate=1",
        "maskloom train configs/quickstart.yaml phases.0.steps=none",
        "maskloom train configs/none.yaml",
        ".venv/bin/python benchmarks/data.py --no-such-option",
        "python -m maskloom.none",
        "deepspeed --module maskloom.train CONFIG optimizer.rate=1",
        "torchrun --nproc-per-node 8 -m maskloom.trian CONFIG",
        "sbatch --node=4 launcher/slurm.sbatch CONFIG",
        "sbatch --nodes=4 launcher/slurm.sbatch CONFIG optimizer.rate=1",
        "make pretrian",
        "make pretrain CONFIG=configs/none.yaml",
        "pip install 'maskloom[none]'",
        "cat configs/none.yaml",
    ):
        (words,) = commands(line)
        with pytest.raises((Exception, SystemExit)):
            check(words)
