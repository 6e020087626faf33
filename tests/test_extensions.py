"""`--import MODULE` and `MASKLOOM_IMPORT`: the user's modules are there before the configuration is read, in every process."""

from __future__ import annotations

import importlib
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from maskloom import cli, extensions
from maskloom.errors import UserError
from maskloom.launch.doctor.look import Request
from maskloom.launch.doctor.machine import as_a_rank
from maskloom.launch.environment import for_hosts

POOL = """
import sys
from maskloom import extensions
from maskloom.processes import Pool
from maskloom.program import run_program
def main():
    extensions.load(["ours"])
    with Pool(1, "maskloom.processes") as pool:
        print(*pool.map(eval, ["__import__('sys').modules['ours'].__file__"]))
    return 0
if __name__ == "__main__":
    run_program("it", main)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder; afterwards this process has no module of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(extensions.VARIABLE, "")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(Path.cwd()))])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_modules_are_imported_once_in_order_and_stay_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "package").mkdir()
    for name in ("first", "package/second", "third"):
        (folder / f"{name}.py").write_text(f"open('log', 'a').write('{name} ')")
    monkeypatch.setenv(extensions.VARIABLE, "first, package.second,")
    extensions.load(["third", "first"])
    extensions.load()
    assert (folder / "log").read_text() == "first package/second third "
    assert os.environ[extensions.VARIABLE] == "first,package.second,third"


def test_without_a_name_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(extensions.VARIABLE)
    before = list(sys.path)
    extensions.load()
    assert extensions.VARIABLE not in os.environ
    assert sys.path == before


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("absent", None, r"--import absent: there is no module absent\. It is looked for in .*PYTHONPATH"),
        ("ours.py", "", r"--import 'ours\.py' is not the name of a module: .*"),
        ("a-b", "", r"--import 'a-b' is not the name of a module: .*"),
        ("ours", "import absent_too", r"--import ours .*: ModuleNotFoundError: .*'absent_too' \(.*ours\.py, line 1\)"),
        ("ours", "\n\n1 / 0", r"--import ours .*: ZeroDivisionError: division by zero \(.*ours\.py, line 3\)"),
        ("ours", "raise ValueError('1\\n  2')", r"--import ours .*: ValueError: 1 2 \(.*ours\.py, line 1\)"),
        ("ours", "import sys\nsys.exit(0)", r"--import ours .*: SystemExit: 0 \(.*ours\.py, line 2\)"),
        ("ours", "def (", r"--import ours .*: SyntaxError: .* \(.*ours\.py, line 1\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_one_message_and_1(
    name: str, text: str | None, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (folder / f"{name.removesuffix('.py')}.py").write_text(text)
    assert cli.main(["peek", "absent.yaml", "--import", name]) == 1
    captured = capsys.readouterr()
    with pytest.raises(UserError, match=said):
        extensions.load([name])
    assert captured.err.startswith("maskloom peek: --import ")
    assert (captured.out, captured.err.count("\n")) == ("", 1)


def test_every_command_takes_it_before_it_reads_anything(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "ours.py").write_text("raise ValueError('reached')")
    for command in cli.COMMANDS:
        monkeypatch.setenv(extensions.VARIABLE, "")
        text = importlib.import_module(f"maskloom.commands.{command}").__doc__ or ""
        examples = text[text.index("\nexample") :]
        example = shlex.split(examples.split(f"\n  maskloom {command} ")[1].splitlines()[0], comments=True)
        assert cli.main([command, *example, "--import", "ours"]) == 1, command
        assert "ValueError: reached" in capsys.readouterr().err


def test_a_rank_takes_it(folder: Path) -> None:
    (folder / "ours.py").write_text("print('imported', flush=True)")
    command = [sys.executable, "-m", "maskloom.train", "--import", "ours", "absent.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (1, "imported\n")
    assert done.stderr.endswith("no configuration file absent.yaml\n")


def test_processes_of_ours_have_imported_it(folder: Path) -> None:
    (folder / "ours.py").write_text("")
    (folder / "script").mkdir()
    (folder / "script" / "it.py").write_text(POOL)
    done = subprocess.run([sys.executable, "script/it.py"], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, f"{folder / 'ours.py'}\n"), done.stderr


def test_hosts_get_the_variable(folder: Path) -> None:
    (folder / "ours.py").write_text("")
    extensions.load(["ours"])
    assert for_hosts()[extensions.VARIABLE] == "ours"


def test_doctor_says_where_it_is_missing(
    run_config: dict, write_config: Callable[[dict], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(extensions.VARIABLE, "absent")
    found = as_a_rank(Request(config=str(write_config(run_config))))
    assert found.refusal.startswith("--import absent: there is no module absent")


@pytest.mark.parametrize(
    "setting", ["optimizer.name=ours", "optimizer.name=ours.Lion", "import=ours", "imports=[ours]"]
)
def test_no_configuration_names_code(
    setting: str,
    folder: Path,
    run_config: dict,
    write_config: Callable[[dict], Path],
) -> None:
    (folder / "ours.py").write_text("open('reached', 'w')")
    config = write_config(run_config)
    command = [sys.executable, "-m", "maskloom.cli", "peek", str(config), setting]  # finds modules in this folder
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert setting.partition("=")[0] in done.stderr
    assert not (folder / "reached").exists()


def test_help_imports_nothing_heavy() -> None:
    look = "import sys; from maskloom import cli, extensions; print(*(sys.modules.keys() & {'torch', 'pydantic', 'numpy'}))"
    assert subprocess.check_output([sys.executable, "-c", look], text=True) == "\n"
