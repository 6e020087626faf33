"""What a host that tells nothing is called, and how it is asked."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from maskloom.launch.doctor.hosts import Way, ask, run_on_all, why_silent
from maskloom.launch.doctor.look import Request
from maskloom.launch.ssh import Ssh, last_line


@pytest.mark.parametrize(
    ("code", "errors", "name"),
    [
        (255, "Host key verification failed.", "unknown host key"),
        (
            255,
            "@  WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!  @\nHost key verification failed.",
            "host key changed",
        ),
        (255, "ada@node7: Permission denied (publickey).", "permission denied"),
        (255, "ssh: Could not resolve hostname node7: Name or service not known", "unknown name"),
        (255, "ssh: connect to host node7 port 22: No route to host", "no route"),
        (255, "ssh: connect to host node7 port 22: Connection refused", "connection refused"),
        (255, "ssh: connect to host node7 port 22: Connection timed out", "timeout"),
        (255, "Timeout, server node7 not responding.", "timeout"),
        (255, "kex_exchange_identification: Connection closed by remote host", "connection closed"),
        (255, "something else", "ssh failed"),
        (1, "bash: line 1: cd: /work: No such file or directory", "no such folder"),
        (127, "env: '/opt/python': No such file or directory", "no such Python"),
        (1, "ModuleNotFoundError: No module named 'maskloom'", "not installed"),
        (1, "TypeError: Request.__init__() got an unexpected keyword argument", "no facts"),
    ],
)
def test_silences_have_names_and_remedies(code: int, errors: str, name: str) -> None:
    level, value, remedy = why_silent(code, errors, "node7")
    assert level == "fail"
    assert value.startswith(f"{name}: {last_line(errors)}")
    assert remedy
    assert "HOST" not in remedy


def test_only_fixed_words_reach_the_remote_shell() -> None:
    *options, host, remote = Way(Ssh()).command("node7", "maskloom.launch.doctor.look")
    assert options[0] == "ssh"
    assert options[-1] == "--"
    assert {"BatchMode=yes", "ConnectTimeout=10"} <= set(options)
    assert host == "node7"
    assert shlex.split(remote)[-3:] == [sys.executable, "-m", "maskloom.launch.doctor.look"]


def test_a_host_that_does_not_answer_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = [sys.executable, "-c", "import sys; print('{\"unix_s\": 0}', flush=True); sys.stdin.read()"]
    monkeypatch.setattr(Way, "command", lambda self, host, module: waits)
    (answer,) = ask(["node7"], [Request()], Way(), limit_s=2.0)
    assert answer.silence
    level, value, remedy = answer.silence
    assert (level, value.startswith("timeout: "), bool(remedy)) == ("fail", True, True)
    assert "a path of the run may hang" in value


def test_one_that_hears_nothing_is_killed() -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(300)"
    )
    (reply,) = run_on_all([[sys.executable, "-c", deaf]], ["go"], 1.0, 1)
    assert (reply.code, reply.output) == (None, "on\n")


def test_clocks_are_compared_as_the_first_line_comes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def command(self: Way, host: str, module: str) -> list[str]:
        ahead = "import time; real = time.time; time.time = lambda: real() + 100; "
        return [sys.executable, "-c", ahead + f"from {module} import main; main()"]

    monkeypatch.setattr(Way, "command", command)
    (answer,) = ask(["node7"], [Request(run_dir=str(tmp_path / "run"))], Way(), limit_s=300.0)
    assert answer.facts
    assert 90 < answer.skew_s < 110


def test_another_maskloom_has_no_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    old = [sys.executable, "-c", 'print(\'{"unix_s": 0}\'); print(\'{"hostname": "x"}\')']
    monkeypatch.setattr(Way, "command", lambda self, host, module: old)
    (answer,) = ask(["node7"], [Request()], Way(), limit_s=60.0)
    assert answer.silence
    assert answer.silence[1].startswith("no facts: ")
