"""Runs a program of ours on every host at once, and asks them for their facts.

Over ssh it starts as a run's ranks would: by the same interpreter, in the same folder. A remote shell reads the command line, so
nothing of a configuration stands there: requests go to stdin, with the variables of a rank.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from maskloom.launch.doctor.look import FACTS, REQUEST, Facts, Line, Request
from maskloom.launch.ssh import AT_ONCE, Ssh, last_line, remote_command

POLL_S = 0.05
END_S = 2.0
"""For a program to end by itself once its stdin has ended."""
CLOSED = ("connection closed", "see sshd's log there: MaxStartups, AllowUsers, or it is shutting down")
SHARED = "start where every host has the same folder, on a shared file system"
SILENCES: tuple[tuple[int | None, str, str, str], ...] = (
    (255, "IDENTIFICATION HAS CHANGED", "host key changed", "reinstalled? ssh-keygen -R HOST, then ssh HOST once"),
    (255, "Host key verification failed", "unknown host key", "ssh HOST once and accept it, or add it to known_hosts"),
    (255, "Permission denied", "permission denied", "put your key into ~/.ssh/authorized_keys there: ssh-copy-id HOST"),
    (255, "Too many authentication", "permission denied", "name the one key for HOST in ~/.ssh/config"),
    (255, "Could not resolve hostname", "unknown name", "correct the hostfile, or add HOST to DNS or ~/.ssh/config"),
    (255, "No route to host", "no route", "is it on, and its network up?"),
    (255, "Network is unreachable", "no route", "is this machine's network up?"),
    (255, "Connection refused", "connection refused", "start sshd there, or set its Port in ~/.ssh/config"),
    (255, "not responding", "timeout", "is it still on, and its network up?"),
    (255, "timed out", "timeout", "is it on, and its network up? A firewall may drop port 22"),
    (255, "Connection closed", *CLOSED),
    (255, "Connection reset", *CLOSED),
    (255, "", "ssh failed", "try: ssh -o BatchMode=yes HOST true"),
    (None, "cd: .*/.*No such file", "no such folder", SHARED),
    (126, "", "no such Python", f"install the same environment at the same path: {sys.executable}"),
    (127, "", "no such Python", f"install the same environment at the same path: {sys.executable}"),
    (None, "No module named", "not installed", f"install maskloom and what it needs for {sys.executable} there"),
    (None, "", "no facts", "is its maskloom the same as this one?"),
)
"""An exit code (255 is ssh's own), what is said with it (a pattern) -> our name for it, and what to do. The first one counts."""


@dataclass(frozen=True)
class Way:
    """How to start a program on a host: over ssh, or without it here, as a process."""

    ssh: Ssh | None = None

    def command(self, host: str, module: str) -> list[str]:
        """The command line that starts a module on a host."""
        if self.ssh is None:
            return [sys.executable, "-m", module]
        return ["ssh", *self.ssh.options(), "-T", "--", host, remote_command(module, [])]


@dataclass(frozen=True)
class Reply:
    """What a program wrote until it ended."""

    code: int | None  # None if it ran too long
    output: str
    errors: str
    began_s: float  # when its first line came, by the clock of this machine


@dataclass(frozen=True)
class Answer:
    """What a host told: facts, or why there are none."""

    host: str
    facts: Facts | None = None
    silence: Line | None = None
    skew_s: float = 0.0  # its clock minus ours as its first line came: too small by the time that the line took


def run_on_all(
    commands: Sequence[list[str]], requests: Sequence[str], limit_s: float, at_once: int, grace_s: float = math.inf
) -> list[Reply]:
    """Run programs, each with a request as a line of its stdin; one that takes longer than `limit_s` is ended.

    Args:
        grace_s: once one has failed, for all others: they may wait for it.
    """
    all_end_s = math.inf

    def run(command: list[str], request: str) -> Reply:
        nonlocal all_end_s
        began_s, end_s = 0.0, time.monotonic() + limit_s
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=output, stderr=errors)
            assert process.stdin
            with contextlib.suppress(OSError):  # one that is gone says itself why
                process.stdin.write(request + "\n")
                process.stdin.flush()
            while (code := process.poll()) is None and time.monotonic() < min(end_s, all_end_s):
                time.sleep(POLL_S)
                began_s = began_s or (time.time() if os.fstat(output.fileno()).st_size else 0.0)
            if code:
                all_end_s = min(all_end_s, time.monotonic() + grace_s)
            with contextlib.suppress(OSError):
                process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
            process.kill()
            process.wait()
            output.seek(0)
            errors.seek(0)
            said, why = (file.read().decode(errors="replace") for file in (output, errors))
            return Reply(code, said, why, began_s or time.time())

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(run, commands, requests))


def ask(hosts: Sequence[str], requests: Sequence[Request], way: Way, limit_s: float) -> list[Answer]:
    """Ask all hosts for their facts, many at once. A host that has not answered after `limit_s` is silent."""
    commands = [way.command(host, "maskloom.launch.doctor.look") for host in hosts]
    replies = run_on_all(commands, [REQUEST.dump_json(request).decode() for request in requests], limit_s, AT_ONCE)
    return [answer_of(host, reply, limit_s) for host, reply in zip(hosts, replies, strict=True)]


def answer_of(host: str, reply: Reply, limit_s: float) -> Answer:
    if reply.code is None:
        what = "it began, and a path of the run may hang on it" if reply.output else "it did not begin"
        value = f"timeout: no answer in {limit_s:.0f} s: {what}"
        return Answer(host, silence=("fail", value, "look at its load and its mounts"))
    try:
        clock, *_, facts = reply.output.splitlines()
        return Answer(host, FACTS.validate_json(facts), skew_s=json.loads(clock)["unix_s"] - reply.began_s)
    except (ValueError, KeyError, TypeError):
        return Answer(host, silence=why_silent(reply.code, reply.errors, host))


def why_silent(code: int, errors: str, host: str) -> Line:
    """What ssh, the remote shell or Python said instead of an answer, with a name before it."""
    rows = (row for row in SILENCES if row[0] in (code, None) and re.search(row[1], errors))
    _, _, name, remedy = next(rows)
    ends = f" (exit code {code})" if name == "no facts" else ""
    return "fail", f"{name}: {last_line(errors)}{ends}", remedy.replace("HOST", host)
