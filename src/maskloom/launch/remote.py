"""Ranks on the hosts of a hostfile, through `deepspeed --hostfile ... --module maskloom.train` over pdsh.

What DeepSpeed's launcher leaves to us, each found by running 0.19.8 with pdsh 2.34:

- pdsh waits for every host, also when one has failed and the others hang. Its line `pdsh@head: node1: ssh exited with exit
  code 1` says so at once; from then on the others have a short time.
- Signals do not cross pdsh. A request to stop is the file RUN/stop, which all ranks look for.
- When the launcher is told to end, it ends everything on the hosts that looks like it, other runs too. So it never is: what has
  the run's token is ended, and the launcher then ends for want of hosts.
- SIGUSR1 and SIGUSR2 would kill it, and orphan all ranks: both are ignored from the start. It has a session of its own, which
  no terminal reaches.
- One host alone would be taken for this machine (`--force_multi`); a name would be resolved by ssh (`--master_addr`).
- Its exit code may be 0 whatever happened: status.json decides.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from maskloom.files import LOCK
from maskloom.launch.ending import FAILED_GRACE_S, POLL_S, WELL, Ended, Stop, exit_code, in_words, say_stopping
from maskloom.launch.environment import environment_file, for_hosts, without_secrets
from maskloom.launch.hostfile import Host, as_hostfile
from maskloom.launch.leftovers import VARIABLE, end_leftovers, guarded, tied
from maskloom.launch.ssh import FAILED, Ssh
from maskloom.progress import say, warn
from maskloom.status import EXIT_HUNG, EXIT_STOPPED, START
from maskloom.train.run_lock import named_holder

HOST_FAILED = re.compile(r"pdsh@[^:\s]+: ([^:\s]+): (?:ssh )?exited with exit code (\d+)")
LEFTOVERS_GRACE_S = 5.0
"""For what is left on the hosts when pdsh has ended."""
LARGEST_SIGNAL = 64


@dataclass
class Failures:
    """The hosts whose launcher has ended with an exit code other than 0, in that order, as pdsh tells of them."""

    codes: list[tuple[str, int]] = field(default_factory=list)

    def hear(self, line: str) -> None:
        if match := HOST_FAILED.match(line):
            self.codes.append((match[1], host_code(int(match[2]))))

    @property
    def first(self) -> tuple[str, int] | None:
        """The first that failed: neither well, nor stopped."""
        return next(((host, code) for host, code in self.codes if code not in WELL), None)


def host_code(code: int) -> int:
    """Our code for that of DeepSpeed's launcher on a host. If signal 9 killed a rank, the launcher ends with -9, and a shell sees
    247; ours is 137. 255 is ssh's own."""
    return 128 + 256 - code if 256 - LARGEST_SIGNAL <= code < FAILED else code


def run_on_hosts(
    hosts: Sequence[Host],
    everywhere: Sequence[Host],
    token: str,
    arguments: Sequence[str],
    run: Path,
    master: tuple[str, int],
    ssh: Ssh,
    stop: Stop,
    grace_s: float,
    failed_grace_s: float = FAILED_GRACE_S,
    name: str = "",
) -> Ended:
    """Start `maskloom.train` with these arguments once a slot, wait until all have ended, and leave nothing behind.

    Args:
        everywhere: hosts on which something with `token` may run, also of an earlier attempt: nothing is left on any.
        token: that all processes of the run have in their environment.
        run: the run's folder, where a request to stop is put.
        master: the address of the first host as the others reach it, and a port that is free there.
        grace_s: after a request to stop, or when one host has ended well, for all others.
        failed_grace_s: for the others when a host has failed.
        name: the ranks' START.
    """
    variables = {**for_hosts(), VARIABLE: token, START: name}
    with (
        private_files(as_hostfile(hosts), environment_file(variables)) as (hostfile, environment),
        guarded(everywhere, token, ssh, hostfile.parent),
    ):
        launcher = subprocess.Popen(
            deepspeed_command(hostfile, master, arguments),
            env={
                **without_secrets(),
                "DS_ENV_FILE": str(environment),
                "PDSH_SSH_ARGS_APPEND": shlex.join(ssh.options()),
            },
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        failures = Failures()
        assert launcher.stderr is not None
        pump = threading.Thread(target=_pass_on, args=(launcher.stderr, failures), daemon=True)
        pump.start()
        grace_left_s, ended = 0.0, None
        try:
            ended = _wait(launcher, failures, stop, run, grace_s, failed_grace_s, name)
            grace_left_s = LEFTOVERS_GRACE_S if ended is None else 0.0
        finally:
            found = end_leftovers(everywhere, token, ssh, grace_left_s)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(launcher.pid, signal.SIGKILL)
            code = exit_code(launcher.wait())
            pump.join(POLL_S * 10)
            if found:
                say(f"{found} processes that had not ended by themselves were ended on the hosts")
    return ended or _by_itself(code, failures)


def deepspeed_command(hostfile: Path, master: tuple[str, int], arguments: Sequence[str]) -> list[str]:
    """The command line of DeepSpeed's launcher. It logs that of pdsh, with all variables, at level `info` only."""
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hostfile), "--launcher", "pdsh"]
    launcher += ["--master_addr", master[0], "--master_port", str(master[1]), "--force_multi", "--no_ssh_check"]
    launcher += ["--log_level", "warning", "--module", "maskloom.train", *map(for_pdsh, arguments)]
    return tied(["sh", "-c", "trap '' USR1 USR2; exec \"$@\"", "sh", *launcher])


def for_pdsh(argument: str) -> str:
    """Quote an argument. DeepSpeed's launcher, pdsh and the shell of a host undo it.

    The launcher puts an argument with a space between double quotes, and no other. pdsh replaces %h and the like."""
    if " " in argument:
        return re.sub(r"([\\$`])", r"\\\1", argument).replace("%", "%%")
    return shlex.quote(argument).replace("%", "%%")


def _wait(
    launcher: subprocess.Popen[bytes],
    failures: Failures,
    stop: Stop,
    run: Path,
    grace_s: float,
    failed_grace_s: float,
    name: str,
) -> Ended | None:
    """Wait for the launcher. Returns None if it ended by itself; else how the attempt ended: its ranks are still to be ended."""
    end_at_s, late = math.inf, Ended(EXIT_HUNG, "the other hosts' ranks did not end although those of one had")
    is_asked, failed = False, None
    while launcher.poll() is None:
        now_s = time.monotonic()
        if stop.signal and not is_asked:
            is_asked = True
            if not _ask_to_stop(run, stop, name):
                return Ended(EXIT_STOPPED, "the ranks were asked to stop before they had begun")
            say_stopping(stop, grace_s)
            end_at_s, late = (
                now_s + grace_s,
                Ended(128 + signal.SIGKILL, "the ranks did not stop in time, and were killed"),
            )
        if not failed and (failed := failures.first):
            warn(f"{_described(*failed)}; the other hosts have {failed_grace_s:,.0f} s to end")
            end_at_s, late = now_s + failed_grace_s, Ended(failed[1], _described(*failed))
        elif failures.codes and math.isinf(end_at_s):
            end_at_s = now_s + grace_s
        if stop.urgent:
            return Ended(128 + signal.SIGINT, "the ranks were killed: asked to stop twice")
        if now_s >= end_at_s:
            return late
        time.sleep(POLL_S)
    return None


def _ask_to_stop(run: Path, stop: Stop, name: str) -> bool:
    """Write RUN/stop. Returns False if there is no run yet, or if another process holds its lock: its ranks would stop."""
    holder = named_holder(run / LOCK)
    if not (run / "config.yaml").exists() or (holder is not None and holder.start != name):
        return False
    (run / "stop").write_text(stop.reason + "\n", encoding="utf-8")
    return True


def _by_itself(code: int, failures: Failures) -> Ended:
    """How an attempt ended if its launcher ended by itself, with this code."""
    if failures.first:
        return Ended(failures.first[1], _described(*failures.first))
    if code == EXIT_STOPPED:
        return Ended(code, "the ranks saved and stopped")
    return Ended(code, f"deepspeed's launcher {in_words(code)}" if code else "all hosts ended well")


def _described(host: str, code: int) -> str:
    return f"{host}: ssh failed: host lost, or not reached" if code == FAILED else f"a rank on {host} {in_words(code)}"


def _pass_on(stream: IO[bytes], failures: Failures) -> None:
    """Write what the launcher writes, and listen for hosts that failed."""
    for line in stream:
        failures.hear(line.decode(errors="replace"))
        with contextlib.suppress(OSError):
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()


@contextlib.contextmanager
def private_files(*texts: str) -> Iterator[tuple[Path, ...]]:
    """Files that nobody else can read, at paths that nobody can guess, for as long as the block runs."""
    with tempfile.TemporaryDirectory(prefix="maskloom-") as folder:  # mode 0700
        paths = tuple(Path(folder) / f"{number}" for number in range(len(texts)))
        for path, text in zip(paths, texts, strict=True):
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                file.write(text)
        yield paths
