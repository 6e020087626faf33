"""`maskloom shards` and kill -9: what was done is not done again, nothing half done is ever seen, and the corpus is the same
to the byte."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from maskloom.data.index.loading import load_index
from tests.conftest import sentences
from tests.waiting import PATIENCE_S, parent_of, session_of, wait_for_end

FILES, SHARDS = 16, 20
OPTIONS = ("--shard-bytes", "180K", "--val-fraction", "0.1", "--deduplicate", "--processes", "2")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files that are a batch each."""
    folder, rng = tmp_path_factory.mktemp("inputs"), random.Random(11)
    base = [sentences(rng, 250) for _ in range(170)]
    paths = [folder / f"{number:02d}.jsonl" for number in range(FILES)]
    for number, path in enumerate(paths):
        lines = [json.dumps({"text": f"{number if place else 'the same'} {text}"}) for place, text in enumerate(base)]
        path.write_text("\n".join(lines))
        assert path.stat().st_size > 256 << 10
    return paths


@pytest.fixture(scope="module")
def whole(inputs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the corpus that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    finished = start(inputs, out)
    assert finished.wait(PATIENCE_S) == 0
    assert len(load_index(out).shards) >= SHARDS
    return files_of(out)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def start(inputs: list[Path], out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "maskloom.cli", "shards", *map(str, inputs), str(out), *OPTIONS, *more]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=pipe, text=True, start_new_session=True)


def done(out: Path) -> int:
    """Pieces of work that are done."""
    work = out.parent / f".{out.name}.work"
    return sum(len(list((work / name).glob("*"))) for name in ("batches", "entries"))


def kill_at(process: subprocess.Popen[str], out: Path, pieces: int, rng: random.Random) -> bool:
    """Kill a process some moments after it did so many pieces. Returns whether it was still there."""
    deadline = time.monotonic() + PATIENCE_S
    while done(out) < pieces and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(rng.random() * 0.02)
    alive = process.poll() is None
    process.kill()
    process.communicate()
    return alive


def kill_a_reader(process: subprocess.Popen[str], out: Path, pieces: int) -> str:
    """Kill one of the processes that do the work, and return what the command says."""
    deadline = time.monotonic() + PATIENCE_S
    while done(out) <= pieces:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    children = [pid for pid in session_of(process.pid) if pid != process.pid]
    readers = [pid for pid in children if parent_of(pid) != process.pid]  # not the server that they fork from
    os.kill(readers[0], signal.SIGKILL)
    return process.communicate(timeout=PATIENCE_S)[1]


def test_killed_at_any_moment_it_resumes_to_the_same_bytes(
    inputs: list[Path], whole: dict[str, bytes], tmp_path: Path
) -> None:
    rng, out = random.Random(1), tmp_path / "out"
    killed, before = 0, 0
    moments = [rng.randrange(1, FILES // 2), rng.randrange(FILES // 2, FILES), FILES + rng.randrange(1, SHARDS // 2)]
    for pieces in moments:
        process = start(inputs, out)
        killed += kill_at(process, out, pieces, rng)
        wait_for_end(process.pid)
        assert not out.exists()
        assert done(out) >= before  # what is done stays done
        before = done(out)
    assert killed >= 2
    process = start(inputs, out)
    said = kill_a_reader(process, out, before)
    assert process.returncode == 1
    assert "a process was killed, most likely for want of memory: start the same command again" in said
    assert "the finished part is in" in said
    assert "Traceback" not in said
    wait_for_end(process.pid)
    last = start(inputs, out)
    assert last.wait(PATIENCE_S) == 0, last.communicate()
    assert files_of(out) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_parts_side_by_side_with_kills_make_the_same_bytes(
    inputs: list[Path], whole: dict[str, bytes], tmp_path: Path
) -> None:
    """Three parts begin at once and wait for each other; one is killed and started again, as Slurm does."""
    rng, out = random.Random(4), tmp_path / "out"
    parts = {number: start(inputs, out, "--part", f"{number}/3", "--wait") for number in (1, 2, 3)}
    kill_at(parts[2], out, rng.randrange(1, FILES), rng)
    parts[2] = start(inputs, out, "--part", "2/3", "--wait")
    for process in parts.values():
        _, said = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, said
    assert not out.exists()
    merge = [sys.executable, "-m", "maskloom.cli", "index", "--merge", str(out)]
    subprocess.run(merge, check=True, capture_output=True, timeout=PATIENCE_S)
    assert files_of(out) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
