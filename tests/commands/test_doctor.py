"""`maskloom doctor` on this machine, for real: what is right and what is wrong with it here."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from maskloom.cli import main
from maskloom.commands.doctor import ending, names, table
from maskloom.launch.doctor.checks import Finding
from maskloom.launch.doctor.machine import checkpoint_bytes
from maskloom.models.build import build_defined
from maskloom.models.masked_lm import count_parameters
from maskloom.train.run_lock import RunLock

from .conftest import Command

Visit = Callable[..., tuple[int, list[str], list[str]]]


@pytest.fixture
def visit(capsys: pytest.CaptureFixture[str]) -> Visit:
    """Run doctor; returns the exit code, and what fails and warns, each with the lines that belong to it in one."""

    def run(*arguments: object) -> tuple[int, list[str], list[str]]:
        capsys.readouterr()
        code = main(["doctor", *map(str, arguments)])
        lines = capsys.readouterr().out.splitlines()
        assert lines[-1].endswith("A run would fail" if code else "A run can start")
        findings: list[str] = []
        for line in lines:
            if line.startswith(" "):
                findings[-1] += f" {line.strip()}"
            else:
                findings.append(line)
        failures, warnings = ([line for line in findings if line.startswith(mark)] for mark in ("FAIL ", "warn "))
        return code, failures, warnings

    return run


def test_a_good_configuration(run_config: dict, write_config: Callable[[dict], Path], succeeds: Command) -> None:
    printed = succeeds("doctor", write_config(run_config), "--processes", 2)
    assert "all-reduce" in printed
    assert "over 2 ranks" in printed
    assert printed.endswith("A run can start\n")
    assert not Path(run_config["run_dir"]).exists()


def test_a_run_that_exists_and_one_that_is_in_use(trained_run: Path, visit: Visit) -> None:
    before = sorted(trained_run.rglob("*"))
    lock = RunLock(trained_run)
    try:
        code, failures, _ = visit(trained_run / "config.yaml")
    finally:
        lock.release()
    assert code == 1
    assert [line.split()[1] for line in failures] == ["lock"]
    assert "the run is in use by process" in failures[0]
    assert sorted(trained_run.rglob("*")) == before


def test_what_the_estimate_of_a_checkpoint_says(trained_run: Path) -> None:
    from maskloom.config_file import load_config

    parameters = count_parameters(build_defined(trained_run / "model"))
    newest = max((trained_run / "checkpoints").glob("step-*"))
    real = sum(file.stat().st_size for file in newest.rglob("*") if file.is_file())
    config = load_config(trained_run / "config.yaml")
    estimate = checkpoint_bytes(config.engine, config.optimizer, parameters)
    assert estimate <= real < 1.2 * estimate  # a small model: headers count


def test_a_file_in_the_way_a_taken_port_and_a_damaged_shard(
    run_config: dict, write_config: Callable[[dict], Path], corpus_dir: Path, tmp_path: Path, visit: Visit
) -> None:
    shutil.copytree(corpus_dir, tmp_path / "shards")
    shard = min((tmp_path / "shards").glob("*.tar"))
    with shard.open("r+b") as file:
        file.seek(600)
        file.write(b"\xff" * 64)
    run_config["data"]["train"] = str(tmp_path / "shards")
    (tmp_path / "file").write_text("")
    run_config["run_dir"] = str(tmp_path / "file" / "run")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, failures, _ = visit(write_config(run_config), "--port", port)
    assert code == 1
    text = "\n".join(failures)
    assert f"{port} is taken" in text
    assert "Not a directory" in text
    assert shard.name in text
    assert {line.split()[1] for line in failures} <= {"port", "run_dir", "data", "configuration"}


def test_too_little_disk_and_memory_for_a_huge_model(
    run_config: dict, write_config: Callable[[dict], Path], visit: Visit
) -> None:
    run_config["model"] = {"hidden_size": 65536, "num_hidden_layers": 128, "num_attention_heads": 64}
    run_config["model"]["intermediate_size"] = 131072
    code, failures, _ = visit(write_config(run_config))
    assert code == 1
    assert [line.split()[1] for line in failures] == ["configuration", "memory", "disk"]
    assert "3 checkpoint(s) of about" in failures[2]


def test_a_missing_shard_and_a_wrong_tokenizer(
    run_config: dict, write_config: Callable[[dict], Path], corpus_dir: Path, tmp_path: Path, visit: Visit
) -> None:
    shutil.copytree(corpus_dir, tmp_path / "shards")
    shard = max((tmp_path / "shards").glob("*.tar"))
    shard.unlink()
    config = write_config(run_config)
    code, failures, _ = visit(config, f"data.train={tmp_path / 'shards'}", f"tokenizer={tmp_path / 'nothing'}")
    assert code == 1
    assert [line.split()[1] for line in failures] == ["configuration", "tokenizer", "data"]
    assert "no tokenizer at" in failures[0]
    assert shard.name in failures[2]


def test_a_configuration_that_is_none(run_config: dict, write_config: Callable[[dict], Path], visit: Visit) -> None:
    code, failures, _ = visit(write_config(run_config), "phases.0.stepz=3")
    assert code == 1
    assert [line.split()[1] for line in failures] == ["configuration"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--hostfile", "/nowhere/hosts"], "no hostfile at /nowhere/hosts"),
        (["--ssh-config", "/etc/hostname"], "are for --hostfile"),
    ],
)
def test_refused(
    arguments: list[str], expected: str, run_config: dict, write_config: Callable[[dict], Path], fails: Command
) -> None:
    assert expected in fails("doctor", write_config(run_config), *arguments)


def test_the_table() -> None:
    found = [
        Finding("ok", "hosts", ("a", "b", "c", "d", "e", "f"), "6 answered"),
        Finding("fail", "torch", ("b",), "1, not 2", "install the same torch there"),
    ]
    assert table(found) == (
        "ok    hosts  a, b, c, d and 2 more  6 answered\n"
        "FAIL  torch  b                      1, not 2\n"
        "                                    -> install the same torch there"
    )
    assert names(()) == ""
    assert ending(found) == "2 checks: 1 ok, 0 warning(s), 1 failure(s). A run would fail"
    assert ending(found[:1]).endswith("A run can start")
