"""Every host at once: a module of ours is started on it, a request goes to its stdin, answers come from its stdout.

Over ssh it starts as a run's ranks would: by the same interpreter, in the same folder. Nothing of a configuration stands on the
command line that a remote shell reads, and the variables of a rank go in the request as well.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import IO

from maskloom.launch.doctor.facts import Facts, Request
from maskloom.launch.ssh import CONNECT_TIMEOUT_S, FAILED, Ssh, last_line, remote_command

AT_ONCE = 64
SILENCES = (
    ("IDENTIFICATION HAS CHANGED", "host key changed", "if it was reinstalled: ssh-keygen -R HOST, then ssh HOST once"),
    ("Host key verification failed", "unknown host key", "ssh HOST once and accept its key, or add it to known_hosts"),
    (
        "Permission denied",
        "permission denied",
        "put your public key into ~/.ssh/authorized_keys there: ssh-copy-id HOST",
    ),
    ("Too many authentication failures", "permission denied", "name the one key for HOST in ~/.ssh/config"),
    (
        "Could not resolve hostname",
        "unknown name",
        "correct the hostfile, or add HOST to DNS, /etc/hosts or ~/.ssh/config",
    ),
    ("No route to host", "no route", "is it on, and its network up?"),
    ("Network is unreachable", "no route", "is this machine's network up?"),
    ("Connection refused", "connection refused", "no sshd listens there: start it, or set its Port in ~/.ssh/config"),
    ("not responding", "timeout", "is it still on, and its network up?"),
    ("timed out", "timeout", "is it on, and its network up? A firewall may drop port 22"),
    ("Connection closed", "connection closed", "see sshd's log there: MaxStartups, AllowUsers, or it is shutting down"),
    ("Connection reset", "connection closed", "see sshd's log there: MaxStartups, AllowUsers, or it is shutting down"),
)
"""What ssh says, our name for it, and what to do."""


@dataclass(frozen=True)
class Silence:
    """Why a host told nothing: a name, its own words, and what to do."""

    name: str
    said: str
    remedy: str


@dataclass(frozen=True)
class Answer:
    """What came back from a host: facts or why there are none.

    Attributes:
        skew_s: its clock minus ours, as its first line came; too small by the time that the line took.
    """

    host: str
    facts: Facts | None = None
    silence: Silence | None = None
    skew_s: float = 0.0


@dataclass(frozen=True)
class Way:
    """How to start something on a host: over ssh, or without it here, as a process."""

    ssh: Ssh | None = None

    def command(self, host: str, module: str) -> list[str]:
        """The argument list that starts a module on a host."""
        if self.ssh is None:
            return [sys.executable, "-m", module]
        return ["ssh", *self.ssh.options(), "-T", "--", host, remote_command(module, [])]

    def start(self, host: str, module: str) -> subprocess.Popen[str]:
        """Start a module on a host; it ends at the latest when its stdin does."""
        pipe = subprocess.PIPE
        return subprocess.Popen(self.command(host, module), text=True, stdin=pipe, stdout=pipe, stderr=pipe)


def ask(hosts: Sequence[str], requests: Sequence[Request], way: Way, limit_s: float) -> list[Answer]:
    """Ask all hosts for their facts, many at once. A host that has not answered after `limit_s` is silent."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda host, request: ask_one(host, request, way, limit_s), hosts, requests))


def ask_one(host: str, request: Request, way: Way, limit_s: float) -> Answer:
    """Ask one host."""
    process = way.start(host, "maskloom.launch.doctor.look")
    lines: list[tuple[float, str]] = []
    errors: list[str] = []
    readers = [
        threading.Thread(target=_read, args=(process.stdout, lines)),
        threading.Thread(target=lambda: errors.append(process.stderr.read() if process.stderr else "")),
    ]
    for reader in readers:
        reader.start()
    send(process, json.dumps(asdict(request)))
    try:
        process.wait(limit_s)
        late = False
    except subprocess.TimeoutExpired:
        process.kill()
        late = True
    for reader in readers:
        reader.join(CONNECT_TIMEOUT_S)
    said = last_line("".join(errors))
    if late:
        what = "it began, and a path of the run may hang on it" if lines else "it did not begin"
        return Answer(
            host, silence=Silence("timeout", f"no answer in {limit_s:.0f} s: {what}", "look at its load and its mounts")
        )
    try:
        (arrived_s, clock), (_, answer) = lines[0], lines[-1]
        return Answer(host, Facts.of(json.loads(answer)), skew_s=json.loads(clock)["unix_s"] - arrived_s)
    except (IndexError, ValueError, KeyError, TypeError):
        return Answer(host, silence=why_silent(process.returncode, "".join(errors), said, host))


def send(process: subprocess.Popen[str], line: str) -> None:
    """Write a line to a process' stdin, which stays open; one that is gone already says itself why."""
    assert process.stdin
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
    except OSError:
        pass


def why_silent(code: int, errors: str, said: str, host: str) -> Silence:
    """A name for what ssh, the remote shell or Python said instead of an answer."""
    if code == FAILED:  # ssh's own
        for words, name, remedy in SILENCES:
            if words in errors:
                return Silence(name, said, remedy.replace("HOST", host))
        return Silence("ssh failed", said, f"try: ssh -o BatchMode=yes {host} true")
    if "cd:" in errors and "/" in said and "No such file" in said:
        return Silence("no such folder", said, "start where every host has the same folder, on a shared file system")
    if code in (126, 127):
        return Silence("no such Python", said, f"install the same environment at the same path: {sys.executable}")
    if "No module named" in errors:
        return Silence("not installed", said, f"install maskloom and what it needs for {sys.executable} there")
    return Silence("no facts", f"{said} (exit code {code})", "is its maskloom the same as this one?")


def _read(stream: IO[str], lines: list[tuple[float, str]]) -> None:
    lines.extend((time.time(), line) for line in stream)
