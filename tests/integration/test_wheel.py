"""The sdist and the wheel: what is in them, and that the wheel trains in an environment without the sources."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Callable
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import NamedTuple

import pytest

import maskloom

ROOT = Path(__file__).parents[2]
AT_THE_TOP = {".venv", ".git", "build", "data", "dist", "export", "runs"}
ANYWHERE = shutil.ignore_patterns(".*cache", ".hypothesis", "__pycache__", "*.egg-info")


class Built(NamedTuple):
    wheel: Path
    sdist: Path


def _without_sources() -> dict[str, str]:
    """The environment of a process that finds packages where they are installed only."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MASKLOOM"))}


def _left_out(folder: str, names: list[str]) -> set[str]:
    return ANYWHERE(folder, names) | (AT_THE_TOP & set(names) if Path(folder) == ROOT else set())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """`python -m build` in a copy of the tree: the sdist, and the wheel made from it. setuptools is the one that torch
    needs, so that nothing is fetched."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = shutil.copytree(ROOT, folder / "tree", ignore=_left_out)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "PIP_NO_INDEX": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (folder / "dist").glob("*.whl")
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    return Built(wheel, sdist)


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment that holds the wheel and, of all else, sees this environment's packages.

    A line of a .pth file only lengthens sys.path: .pth files in the folder that it names, such as that of an editable
    install, are not read.
    """
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "others.pth").write_text("".join(f"{path}\n" for path in sorted(paths)))
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "--disable-pip-version-check"]
    command = [*pip, "install", "--quiet", "--no-index", "--no-deps", "--ignore-installed", str(built.wheel)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=_without_sources())
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "bin"


def _metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


def test_the_wheel_holds_the_package_and_nothing_else(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        names = set(archive.namelist())
    info = f"maskloom-{maskloom.__version__}.dist-info"
    sources = ROOT / "src" / "maskloom"
    package = {f"maskloom/{path.relative_to(sources)}" for path in sources.rglob("*.py")} | {"maskloom/py.typed"}
    assert {name for name in names if not name.startswith(f"{info}/")} == package
    assert {
        f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    } <= names
    with zipfile.ZipFile(built.wheel) as archive:
        assert archive.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()


def test_the_metadata(built: Built) -> None:
    found = _metadata(built.wheel)
    assert (found["Name"], found["Version"]) == ("maskloom", maskloom.__version__)
    assert found["License-Expression"] == "Apache-2.0"
    assert found.get_all("License-File") == ["LICENSE"]
    assert found["Author"] == "maskloom contributors"
    assert found["Requires-Python"] == ">=3.11"
    assert "Typing :: Typed" in found.get_all("Classifier", [])
    assert found["Description-Content-Type"] == "text/markdown"
    assert str(found.get_payload()).lstrip().startswith("# maskloom")
    needed = [line for line in found.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert any(re.match(r"deepspeed==\d", line) for line in needed)
    assert not any(re.match(r"(pytest|ruff|mypy|build|pyphen)\b", line) for line in needed)


def test_the_sdist_holds_what_tests_and_builds_it(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "SECURITY.md", "Makefile"}
    wanted |= {
        "pyproject.toml",
        "constraints.txt",
        "src/maskloom/py.typed",
        "docs/design.md",
        "configs/quickstart.yaml",
    }
    wanted |= {"tests/conftest.py", "tests/integration/test_wheel.py", "tests/fixtures/regression_bert.json"}
    assert wanted <= names
    assert not [
        name for name in names if re.search(r"\.pyc$|__pycache__|\.venv|benchmarks/\.cache|^(runs|data)/", name)
    ]


def test_it_runs_and_trains_from_the_wheel(
    built: Built, installed: Path, run_config: dict, write_config: Callable[[dict], Path], tmp_path: Path
) -> None:
    def run(*command: object) -> str:
        done = subprocess.run(
            [*map(str, command)], capture_output=True, text=True, timeout=300, cwd=tmp_path, env=_without_sources()
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    program = installed / "maskloom"
    code = "import maskloom, importlib.metadata as m; print(maskloom.__file__, m.version('maskloom'), sep='\\n')"
    file, version = run(installed / "python", "-c", code).splitlines()
    assert Path(file).is_relative_to(installed.parent)
    assert version == maskloom.__version__
    assert "usage: maskloom" in run(program, "--help")
    run(program, "train", write_config(run_config))
    run(program, "export", run_config["run_dir"], tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").exists()
