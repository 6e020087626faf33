"""What a run's folder holds, and a damaged disk or another user may have changed: status, attempts, lock, checkpoints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from maskloom.commands.status import described
from maskloom.data.cursors import Cursor
from maskloom.distributed import World
from maskloom.errors import UserError
from maskloom.files import LOCK, read_lines
from maskloom.launch.supervisor import known_status, next_step
from maskloom.status import Status, attempt_steps, note_attempt, parse_status, read_status, why_not_again
from maskloom.train import checkpoint
from maskloom.train.checkpoint.digests import digest
from maskloom.train.checkpoint.fit import unlike_data
from maskloom.train.held_out import HeldOut
from maskloom.train.refusal import GuardState, PassedOver, jumps, read_intervals
from maskloom.train.run_dir import newest_named, recorded_threads
from maskloom.train.run_lock import Holder, in_use, named_holder

from .harness import fuzz

NAMES = (
    "step hosts name state done running threads files bytes data.json cursors fingerprint guard losses rows_of_steps "
    "held_out evaluated"
)
WORDS = (
    *(f'"{name}"'.encode() for name in NAMES.split()),
    *b'null true NaN Infinity -1 1.5 "x" [] {} [[ ".." "../x" "a\\u0000b" "\\ud800" step-00000004'.split(),
    b"[" * 3000,
)
STATUS = Status(
    "failed", 7, 12, 3, "rank 1 was killed", "start it again", True, "step-00000004", ("node1", "node2"), 4, 1e9
)
INTERVAL = PassedOver(2, (3, 5), 12, 3, "its loss is nan", [[[5, [32, 4]]], [[6, [32, 5]]]])
STATE = checkpoint.State(
    4,
    1000,
    [[Cursor(7, ((32, 4),)).to_json()], [Cursor(8).to_json()]],
    0,
    {"corpus 0": "ab", "tokenizer": "cd", "lanes": 2, "version of order": 2},
    2,
    1,
    "fp32",
    GuardState(0, (2.5, 3.0), 1, 2).to_json(),
    [INTERVAL.to_json()],
    HeldOut(64, 0.15, 12).with_loss(0, 6.0).with_loss(3, None).to_json(),
)


def is_shown(error: UserError) -> None:
    assert str(error).isprintable(), str(error)


def test_status(tmp_path: Path) -> None:
    def parse(data: bytes) -> None:
        (tmp_path / "status.json").write_bytes(data)
        status = read_status(tmp_path)
        assert status is not None
        described(tmp_path, status, 2e9)
        next_step(status)
        why_not_again(status, [0])
        assert parse_status(status.as_text()).step == status.step

    fuzz(parse, [STATUS.as_text().encode(), Status("running", 0, 1, 1).as_text().encode()], WORDS, folder=tmp_path)


def test_attempts(tmp_path: Path) -> None:
    for step in (0, 4, 4):
        note_attempt(tmp_path, {"attempt": 1, "step": step, "world_size": 2, "hosts": ["a"], "start": "x"})
    file = tmp_path / "attempts.jsonl"
    seed = file.read_bytes()

    def parse(data: bytes) -> None:
        file.write_bytes(data)
        assert all(step >= 0 for step in attempt_steps(tmp_path))
        assert len(attempt_steps(tmp_path, "x")) <= len(attempt_steps(tmp_path))

    fuzz(parse, [seed], WORDS, allowed=(), folder=tmp_path)


def test_lines_of_metrics(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"

    def parse(data: bytes) -> None:
        file.write_bytes(data)
        for line in read_lines(file):
            assert 0 <= line["step"] < 1 << 63

    fuzz(parse, [b'{"step": 1, "loss": 2.5}\n{"step": 2, "loss": null}\n'], WORDS, allowed=(), folder=tmp_path)


def test_pointers_and_threads(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()

    def name(data: bytes) -> None:
        (tmp_path / "checkpoints" / "latest.json").write_bytes(data)
        found = newest_named(tmp_path)
        assert found is None or found.isascii()

    def threads(data: bytes) -> None:
        (tmp_path / "environment.json").write_bytes(data)
        assert recorded_threads(tmp_path) in range(1, 1 << 17)

    fuzz(name, [b'{"name": "step-00000004", "step": 4}'], WORDS, allowed=(), folder=tmp_path)
    fuzz(threads, [b'{"host": "a", "packages": {"torch": "2"}, "world_size": 2, "threads": 4}'], WORDS, folder=tmp_path)


def test_lock_files(tmp_path: Path) -> None:
    def parse(data: bytes) -> None:
        (tmp_path / LOCK).write_bytes(data)
        holder = named_holder(tmp_path / LOCK)
        is_shown(in_use(tmp_path, holder or Holder()))

    seeds = [
        Holder(7, "node1", "2026-11-28 10:00:00 UTC", "python -m x 'a b'", "ab12").as_text().encode(),
        b"process 7 on node9",
    ]
    words = [b"process ", b" on ", b"\nsince ", b"\ncommand ", b"\nstart ", "٣".encode(), b"\x1b[2J", b"a" * 3000]
    fuzz(parse, seeds, words, allowed=(), folder=tmp_path)


def test_intervals(tmp_path: Path) -> None:
    def parse(data: bytes) -> None:
        (tmp_path / "passed_over.json").write_bytes(data)
        for interval in read_intervals(tmp_path):
            jumps([interval], 2, 1)

    fuzz(parse, [json.dumps([INTERVAL.to_json()] * 2).encode(), b"[]"], WORDS, folder=tmp_path)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., None]:
    """Write a whole checkpoint of step 4, and perhaps other bytes as its data.json or manifest."""
    folder = tmp_path / "checkpoints" / "step-00000004"
    folder.mkdir(parents=True)
    (folder / "rank0.pt").write_bytes(b"weights")

    def write(data: bytes, manifest: bytes | None = None) -> None:
        for aside in folder.parent.glob(".damaged-*"):
            aside.rename(folder)
        (folder / "data.json").write_bytes(data)
        if manifest is None:
            files = {name: digest(folder / name)._asdict() for name in ("data.json", "rank0.pt")}
            manifest = json.dumps({"step": 4, "files": files}).encode()
        (folder / "manifest.json").write_bytes(manifest)

    return write


def test_data_of_checkpoints(tmp_path: Path, write: Callable[..., None]) -> None:
    """With a manifest that fits: whoever changed the one may have changed the other."""

    def parse(data: bytes) -> None:
        write(data)
        unlike_data(tmp_path, {}, "")
        checkpoint.known_intervals(tmp_path)
        found = checkpoint.find(tmp_path, World())
        assert found is not None
        state = found[1]
        assert len(state.lane_cursors()) == len(state.cursors)
        assert state.guard_state().in_a_row >= 0

    fuzz(
        parse,
        [json.dumps(asdict(STATE)).encode(), json.dumps({**asdict(STATE), "guard": {}}).encode()],
        WORDS,
        folder=tmp_path,
    )


def test_manifests(tmp_path: Path, write: Callable[..., None]) -> None:
    """A checkpoint is whole, or damaged."""
    data = json.dumps(asdict(STATE)).encode()
    write(data)
    seed = (tmp_path / "checkpoints" / "step-00000004" / "manifest.json").read_bytes()
    assert hashlib.sha256(data).hexdigest().encode() in seed

    def parse(manifest: bytes) -> None:
        write(data, manifest)
        fault = checkpoint.damage(tmp_path / "checkpoints" / "step-00000004")
        try:
            found = checkpoint.find(tmp_path, World())
        except UserError:
            assert fault is not None
            raise
        assert found is not None
        assert fault is None

    fuzz(parse, [seed], WORDS, folder=tmp_path)


def test_a_status_that_is_damaged_is_said_and_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_bytes(b"[" * 5000)
    assert known_status(tmp_path) is None
