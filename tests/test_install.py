"""docs/install.md and docs/containers.md: their commands are run, or read by the programs that they are for; the versions are
those that are pinned."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import setuptools  # noqa: F401  # before pip, which imports Python's own distutils: after that it refuses to be imported
import yaml
from pip._internal.commands import create_command

from maskloom import cli
from maskloom.commands import load
from maskloom.config_file import load_config

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "install.md"
CONTAINERS = ROOT / "docs" / "containers.md"
INDEX = "https://download.pytorch.org/whl/"
DOCKER = {
    "build": {"-f", "-t", "--build-arg", "--secret", "--target"},
    "compose": {"-f", "--profile"},
    "run": {"--rm", "--gpus", "--shm-size", "-v"},
}
"""Options of the page's commands, as `docker build --help`, `docker compose --help` and `docker run --help` list them (28.2)."""
WITHOUT_VALUE = {"--rm", "--nv"}
APPTAINER = {"build": {"--build-arg"}, "run": {"--nv", "--bind"}}
"""The same of Apptainer 1.3."""


def commands() -> list[str]:
    """The lines of the pages' shell blocks, those that a backslash continues joined."""
    pages = PAGE.read_text() + CONTAINERS.read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```$", pages, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def builds() -> dict[str, tuple[str, set[str]]]:
    """The page's first table: of a version of torch, PyPI's build and those of PyTorch's index."""
    rows = re.findall(r"^\| (\d+\.\d+) \| (cu\d+) \| ([a-z0-9, ]+) \|$", PAGE.read_text(), re.MULTILINE)
    return {version: (default, set(others.split(", "))) for version, default, others in rows}


def is_pip(words: list[str]) -> None:
    assert words[1:3] == ["-m", "pip"] or words[0] == ".venv/bin/pip"
    name, *given = words[3:] if words[1] == "-m" else words[1:]
    options, names = create_command(name).parse_args(given)  # ends this process where pip knows an option not
    assert names or options.editables
    url = getattr(options, "index_url", "")
    if url.startswith(INDEX):
        (pin,) = names
        version = pin.removeprefix("torch==")
        assert pin in (ROOT / "constraints.txt").read_text().splitlines()
        assert url.removeprefix(INDEX) in builds()[version.rpartition(".")[0]][1]
    for file in getattr(options, "constraints", []):
        assert (ROOT / file).is_file()


def is_python(words: list[str]) -> None:
    if words[1:3] in (["-m", "venv"], ["-m", "pip"]):
        assert words[2] == "pip" or words[3:] == [".venv"]
        if words[2] == "pip":
            is_pip(words)
        return
    assert words[1] == "-c"
    done = subprocess.run([sys.executable, "-c", words[2]], capture_output=True, text=True, check=True, timeout=120)
    assert len(done.stdout.split()) == 3  # version, CUDA's version or None, and whether there is a GPU


def is_make(words: list[str]) -> None:
    subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, check=True, timeout=60)


def is_maskloom(words: list[str]) -> None:
    assert words[1] in cli.COMMANDS
    _, parser = load(words[1:2])
    options = parser.parse_intermixed_args(words[2:])
    if words[1] in ("doctor", "train"):
        load_config(ROOT / options.config, options.overrides)
        assert options.hostfile in (None, "YOUR_HOSTS")


def is_script(words: list[str]) -> None:
    script = ROOT / words[0]
    assert os.access(script, os.X_OK)
    assert words[1] in script.read_text()


def names_after_options(words: list[str], known: set[str]) -> tuple[list[str], dict[str, list[str]]]:
    """What is no option, up to the program's own arguments, and the values of the options."""
    values: dict[str, list[str]] = {}
    waiting = [*words]
    while waiting and waiting[0].startswith("-"):
        option = waiting.pop(0)
        assert option in known
        values.setdefault(option, []).extend([] if option in WITHOUT_VALUE else [waiting.pop(0)])
    return waiting, values


def is_docker(words: list[str]) -> None:
    names, values = names_after_options(words[2:], DOCKER[words[1]])
    if words[1] == "run":
        assert names[0] in ("maskloom", "maskloom:cuda")
        assert names[1] == "train"
        return
    (file,) = values["-f"]
    if words[1] == "compose":
        service = yaml.safe_load((ROOT / file).read_text())["services"][names[1]]
        assert names[0] == "up"
        assert service.get("profiles", []) == values.get("--profile", [])
        return
    assert names == ["."]
    text = (ROOT / file).read_text()
    declared = re.findall(r"^ARG (\w+)=", text, re.MULTILINE)
    assert {argument.partition("=")[0] for argument in values.get("--build-arg", [])} <= set(declared)
    for target in values.get("--target", []):
        assert re.search(rf"^FROM .* AS {target}$", text, re.MULTILINE)
    for secret in values.get("--secret", []):
        assert f"--mount=type=secret,{secret.partition(',')[0]}" in text


def is_apptainer(words: list[str]) -> None:
    names, values = names_after_options(words[2:], APPTAINER[words[1]])
    assert names[0] == "maskloom.sif"
    if words[1] == "run":
        assert names[1] == "train"
        return
    text = (ROOT / names[1]).read_text()
    for argument in values.get("--build-arg", []):
        assert f"{argument.partition('=')[0]}=" in text[text.index("%arguments") :]


def is_variable(words: list[str]) -> None:
    assert words in (["export", "HF_HUB_OFFLINE=1"], ["export", "UID_GID=$(id -u):$(id -g)"])


def is_sourced(words: list[str]) -> None:
    assert words[1].startswith("<(maskloom")
    is_maskloom([word.strip("<()") for word in words[1:]])


def is_script_of_root(words: list[str]) -> None:
    is_script(words[1:])


READERS: dict[str, Callable[[list[str]], None]] = {
    "python3": is_python,
    ".venv/bin/python": is_python,
    ".venv/bin/pip": is_pip,
    "make": is_make,
    ".venv/bin/maskloom": is_maskloom,
    "benchmarks/gpu_check.sh": is_script,
    "docker": is_docker,
    "apptainer": is_apptainer,
    "export": is_variable,
    "maskloom": is_maskloom,
    "source": is_sourced,
    "sudo": is_script_of_root,
}


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_page_is_one(command: str) -> None:
    subprocess.run(["bash", "-n", "-c", command], check=True, timeout=60)
    words = shlex.split(command)
    if words[0].startswith("PY="):
        words = words[1:]
    READERS[words[0]](words)


def test_the_page_has_commands_of_every_kind() -> None:
    firsts = {shlex.split(command)[0] for command in commands()}
    assert READERS.keys() - {"benchmarks/gpu_check.sh"} <= firsts


def test_an_option_that_pip_does_not_know_is_found_out() -> None:
    with pytest.raises(SystemExit):
        is_pip([".venv/bin/pip", "install", "--indexurl", INDEX, "torch"])


def test_the_pinned_torch_is_in_the_table() -> None:
    (pin,) = re.findall(r"^torch==(\d+\.\d+)\.\d+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    least = re.search(r'"torch>=(\d+\.\d+)"', (ROOT / "pyproject.toml").read_text())
    assert least
    assert {pin, least[1]} <= builds().keys()


def test_links_of_the_page_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#][^)]*)\)", PAGE.read_text()):
        if target.startswith("https://"):
            continue
        file, _, heading = target.partition("#")
        text = (PAGE.parent / file).read_text()
        titles = {
            re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").lower()).replace(" ", "-")
            for line in text.splitlines()
            if line[:1] == "#"
        }
        assert not heading or heading in titles


def test_a_wheel_is_installed_without_an_index(tmp_path: Path) -> None:
    """The page's way without a network, for maskloom itself: what it needs is here already."""
    source, wheelhouse, site = tmp_path / "source", tmp_path / "wheelhouse", tmp_path / "site"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "src"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    # Its own setuptools: pip would fetch one.
    make = ["wheel", "--wheel-dir", wheelhouse, "--no-deps", "--no-build-isolation", source]
    take = ["install", "--no-index", "--find-links", wheelhouse, "--no-deps", "--target", site, "maskloom"]
    for arguments in (make, take):
        subprocess.run([*pip, *map(str, arguments)], check=True, capture_output=True, timeout=240)
    code = "import maskloom, sys; sys.exit(not maskloom.__file__.startswith(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    subprocess.run([sys.executable, "-c", code, str(site)], check=True, env=environment, cwd=tmp_path, timeout=60)
