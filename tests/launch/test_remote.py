"""What goes through DeepSpeed's launcher, pdsh and the shells of hosts comes out as it went in."""

from __future__ import annotations

import json
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from maskloom.errors import UserError
from maskloom.launch import remote
from maskloom.launch.ending import Stop
from maskloom.launch.environment import environment_file, for_hosts, without_secrets
from maskloom.launch.remote import Failures, deepspeed_command, for_pdsh, host_code, private_files
from maskloom.launch.ssh import Ssh, remote_command
from maskloom.train.run_lock import RunLock
from tests.conftest import missing

ARGUMENTS = [
    "a=b",
    "data.train=[{path: x, weight: 2}]",
    "run_dir=/runs/my run/$HOME`id`\"'\\%h",
    "x='%n'",
    "a;b|c&(d)<e>*",
    "é~#!",
]
WORDS = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0\n\r"), min_size=1, max_size=30)


def through_pdsh(words: list[str], exports: str = "") -> list[str]:
    """What a program on a host gets as arguments, by DeepSpeed's own treatment, pdsh, and sh in the place of ssh."""
    if not shutil.which("pdsh"):
        missing("pdsh")
    from deepspeed.launcher.multinode_runner import PDSHRunner

    class Options:
        user_args = words

    class Given:
        args = Options

    words = PDSHRunner.parse_user_args(Given)  # type: ignore[arg-type]
    program = "import json, sys; print(json.dumps(sys.argv[1:]))"
    # ssh joins all words to one line for the shell of the host.
    line = " ".join([exports, sys.executable, "-c", f"'{program}'", *words])
    command = ["pdsh", "-S", "-N", "-R", "exec", "-w", "host0", "/bin/sh", "-c", line]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return list(json.loads(done.stdout))


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_arguments_come_out_as_they_went_in(argument: str) -> None:
    assert through_pdsh([for_pdsh(argument), "end"]) == [argument, "end"]


@settings(max_examples=40, deadline=None)
@given(WORDS)
@example("%%h %n")
def test_any_argument_comes_out_as_it_went_in(argument: str) -> None:
    assert through_pdsh([for_pdsh(argument), "end"]) == [argument, "end"]


@settings(max_examples=40, deadline=None)
@given(WORDS.map(str.strip).filter(bool))
@example('$HOME `id` "x" \\ %h')
@example("/tmp/nccl.%h.%p")
def test_values_of_variables_come_out_as_they_went_in(value: str) -> None:
    if not shutil.which("pdsh"):
        missing("pdsh")
    from deepspeed.launcher.multinode_runner import PDSHRunner

    runner = PDSHRunner.__new__(PDSHRunner)
    runner.exports = {}
    for line in environment_file({"VALUE": value}).split("\n"):
        if line:
            runner.add_export(*line.split("=", maxsplit=1))
    exports = "".join(f"export {name}={text}; " for name, text in runner.exports.items())
    assert through_pdsh(['"$VALUE"'], exports) == [value]


def test_what_deepspeed_cannot_read_is_not_written() -> None:
    assert environment_file({"A": "1", "B": ""}) == "A=1\nB=\n"
    with pytest.raises(UserError, match="VALUE has a value of several lines"):
        environment_file({"VALUE": "a\nb"})


def test_what_steers_training_is_passed_on_and_secrets_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".deepspeed_env").write_text("# mine\n\nNCCL_DEBUG=INFO\nCUSTOM=a=b\n")
    (tmp_path / ".deepspeed_env").write_text("CUSTOM=c\n")
    given = {
        "NCCL_DEBUG": "WARN",
        "OMP_NUM_THREADS": "4",
        "HF_TOKEN": "hf_1234567890",
        "NCCL_KEY": "secret",
        "HF_TOKEN_PATH": "/home/me/token",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "3",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_PROFILE": "me",
        "EDITOR": "vi",
    }
    assert for_hosts(given) == {
        "NCCL_DEBUG": "INFO",
        "OMP_NUM_THREADS": "4",
        "HF_TOKEN_PATH": "/home/me/token",
        "TOKENIZERS_PARALLELISM": "false",
        "AWS_PROFILE": "me",
        "CUSTOM": "c",
    }
    said = capsys.readouterr().err
    assert "HF_TOKEN is not passed" in said
    assert "1234567890" not in said
    assert set(given) - set(without_secrets(given)) == {"HF_TOKEN", "NCCL_KEY", "AWS_SECRET_ACCESS_KEY"}
    (tmp_path / ".deepspeed_env").write_text("WANDB_API_KEY=abcdefgh1234\nnonsense\n")
    with pytest.raises(UserError, match="line 1: WANDB_API_KEY would stand") as error:
        for_hosts({})
    assert "line 2" in str(error.value)
    assert "abcdefgh1234" not in str(error.value)


def test_files_for_the_launcher_are_private_and_gone_afterwards() -> None:
    with private_files("hosts", "variables") as (hostfile, environment):
        assert stat.S_IMODE(hostfile.parent.stat().st_mode) == 0o700
        assert {stat.S_IMODE(file.stat().st_mode) for file in (hostfile, environment)} == {0o600}
        assert environment.read_text() == "variables"
    assert not hostfile.parent.exists()


def test_the_launcher_is_told_all_that_it_would_guess() -> None:
    command = deepspeed_command(Path("/x/0"), ("10.0.0.1", 12345), ["run.yaml", "seed=1"])
    text = " ".join(command)
    for expected in (
        "--hostfile /x/0",
        "--master_addr 10.0.0.1 --master_port 12345",
        "--force_multi",
        "--log_level warning",
        "--module maskloom.train run.yaml seed=1",
        "trap '' USR1 USR2",
    ):
        assert expected in text


def test_hosts_that_failed_are_heard_of_at_once() -> None:
    failures = Failures()
    failures.hear("node1: pdsh@head: node9: ssh exited with exit code 1\n")  # what a rank printed
    failures.hear("pdsh@head: node2: ssh exited with exit code 75\n")
    assert failures.first is None
    failures.hear("pdsh@head: node1: ssh exited with exit code 247\n")
    failures.hear("pdsh@head: ada@node3: ssh exited with exit code 1\n")
    assert failures.first == ("node1", 137)
    assert failures.codes == [("node2", 75), ("node1", 137), ("ada@node3", 1)]


def test_codes_of_launchers_are_those_of_a_shell() -> None:
    assert [host_code(code) for code in (0, 1, 75, 76, 247, 245, 255)] == [0, 1, 75, 76, 137, 139, 255]


def test_ssh_never_asks_and_checks_whom_it_talks_to(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("Host alias\n    HostName 10.0.0.7\n")
    ssh = Ssh.of(str(tmp_path / "config"))
    words = ssh.options()
    assert words[:2] == ["-F", str(tmp_path / "config")]
    for option in (
        "BatchMode=yes",
        "StrictHostKeyChecking=yes",
        "ForwardAgent=no",
        "ServerAliveInterval=15",
        "ConnectTimeout=10",
    ):
        assert words[words.index(option) - 1] == "-o"
    if shutil.which("ssh"):
        assert ssh.address("alias") == "10.0.0.7"
        assert ssh.address("ada@node1") == "node1"
    (tmp_path / "a b").touch()
    with pytest.raises(UserError, match="no path with spaces"):
        Ssh.of(str(tmp_path / "a b"))
    with pytest.raises(UserError, match="no ssh_config"):
        Ssh.of(str(tmp_path / "nowhere"))


def test_a_host_runs_the_same_python_in_the_same_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "it's here").mkdir()
    monkeypatch.chdir(tmp_path / "it's here")
    line = remote_command("maskloom.launch.leftovers", ["a b", "$x"], {"PYTHONPATH": "src", "HOME": "/"})
    shown = subprocess.run(
        ["sh", "-c", line.replace("exec env", "printf '%s|'")], capture_output=True, text=True, check=True
    )
    assert shown.stdout.split("|")[:-1] == [
        "PYTHONPATH=src",
        sys.executable,
        "-m",
        "maskloom.launch.leftovers",
        "a b",
        "$x",
    ]


def test_a_stop_is_asked_of_our_ranks_only(tmp_path: Path) -> None:
    stop = Stop()
    stop.signal = signal.SIGTERM
    assert not remote._ask_to_stop(tmp_path, stop, "mine"), "there is no run yet"
    (tmp_path / "config.yaml").touch()
    lock = RunLock(tmp_path, "another's")
    assert not remote._ask_to_stop(tmp_path, stop, "mine"), "ours have not begun, and never will"
    assert not (tmp_path / "stop").exists()
    assert remote._ask_to_stop(tmp_path, stop, "another's")
    assert "SIGTERM" in (tmp_path / "stop").read_text()
    lock.release()
