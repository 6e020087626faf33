"""Builds of extensions, for real: torch compiles a tiny one, and a build is killed at its compiler."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from torch.utils import cpp_extension

from maskloom.train.engine.ops import building_alone, is_stale, load_operator, stale_locks

NAME = "tiny"
BUILD = """
    from pathlib import Path
    from torch.utils.cpp_extension import load
    from maskloom.train.engine.ops import load_operator

    class Builder:
        name = "tiny"
        def load(self):
            load("tiny", [SOURCE], is_python_module=False, is_standalone=False)

    BEFORE
    WAY
    print("built", flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The extension's folder; its compiler waits while the file `wait` is there, and counts its calls in `calls`."""
    (tmp_path / "tiny.cpp").write_text('extern "C" int seven() { return 7; }\n')
    compiler = tmp_path / "compiler"
    compiler.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nwhile [ -e {tmp_path}/wait ]; do sleep 0.1; done\nexec g++ "$@"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    return tmp_path / "extensions" / NAME


def start(folder: Path, way: str, before: str = "") -> subprocess.Popen[str]:
    source = repr(str(folder.parent.parent / "tiny.cpp"))
    code = textwrap.dedent(BUILD).replace("SOURCE", source).replace("WAY", way).replace("BEFORE", before)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def read_to(process: subprocess.Popen[str], said: str) -> None:
    """Read its output up to the line that holds this: a build of torch for CUDA warns before of a GPU that is not there."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if said in line:
            return
    raise AssertionError(f"it did not say {said!r} but {lines}")


def wait_for(what: Path) -> None:
    until = time.monotonic() + 120
    while not what.exists():
        assert time.monotonic() < until, f"no {what}"
        time.sleep(0.05)


def test_a_start_after_a_killed_build_builds_and_torch_alone_waits_for_ever(folder: Path) -> None:
    root = folder.parent.parent
    (root / "wait").touch()
    killed = start(folder, "load_operator(Builder())")
    wait_for(root / "calls")
    assert not is_stale(folder / "lock")  # its maker lives
    assert stale_locks() == []
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    (root / "wait").unlink()
    assert stale_locks() == [folder / "lock"]

    alone = start(folder, "Builder().load()", "print('begins', flush=True)")
    read_to(alone, "begins\n")
    with pytest.raises(subprocess.TimeoutExpired):
        alone.wait(5)
    os.killpg(alone.pid, signal.SIGKILL)
    alone.communicate()

    output, _ = start(folder, "load_operator(Builder())").communicate(timeout=300)
    assert output.endswith("built\n"), output
    assert f"removed {folder / 'lock'}" in output
    assert stale_locks() == []
    assert not (folder / "lock").exists()


def test_ranks_that_start_together_compile_once(folder: Path) -> None:
    root = folder.parent.parent
    (root / "wait").touch()
    ranks = [start(folder, "load_operator(Builder())")]
    wait_for(root / "calls")
    ranks += [start(folder, "load_operator(Builder())", "print('begins', flush=True)") for _ in range(2)]
    for rank in ranks[1:]:
        read_to(rank, "begins\n")
        read_to(rank, "waiting for another process that builds it")
    (root / "wait").unlink()
    outputs = [rank.communicate(timeout=300)[0] for rank in ranks]
    assert all(output.endswith("built\n") for output in outputs), outputs
    calls = (root / "calls").read_text().splitlines()
    assert sum(" -c " in call for call in calls) == 1


def test_a_lock_that_a_living_build_holds_stays(folder: Path) -> None:
    with building_alone(NAME):
        pass
    baton = cpp_extension.FileBaton(str(folder / "lock"))
    assert baton.try_acquire()
    with building_alone(NAME):
        assert (folder / "lock").exists()
    baton.release()
    with building_alone(NAME):
        assert not (folder / "lock").exists()


def test_the_operator_is_loaded_under_the_lock(folder: Path) -> None:
    class Builder:
        name = NAME

        def load(self) -> None:
            begun = subprocess.run(["flock", "--nonblock", folder / "maskloom.lock", "true"], check=False)
            assert begun.returncode == 1  # held

    load_operator(Builder())
    assert subprocess.run(["flock", "--nonblock", folder / "maskloom.lock", "true"], check=False).returncode == 0
