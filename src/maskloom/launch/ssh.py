"""ssh as everything here uses it: it never asks, never waits for ever, checks whom it talks to, and lends no keys.

What runs on a host is this Python in this folder: as with DeepSpeed's launcher, both are at the same place on all machines.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from maskloom.errors import UserError

OPTIONS = (
    "BatchMode=yes",  # no question for a password or an unknown key: nobody is there to answer
    "StrictHostKeyChecking=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    "ServerAliveInterval=15",
    "ServerAliveCountMax=3",  # a host that is gone is noticed within a minute
)
CONNECT_TIMEOUT_S = 10
AT_ONCE = 64
"""Hosts that are asked at the same time."""
FAILED = 255
"""Exit code of ssh if ssh itself failed."""


@dataclass(frozen=True)
class Ssh:
    """How to reach hosts.

    Attributes:
        config: an ssh_config file to use instead of the user's; None: the user's.
    """

    config: str | None = None

    @staticmethod
    def of(config: str | None) -> Ssh:
        """Raises UserError if the file does not exist, or if pdsh cannot take its path."""
        if config is None:
            return Ssh()
        path = Path(config).absolute()
        if not path.is_file():
            raise UserError(f"no ssh_config file at {config}")
        if not re.fullmatch(r"[\w@%+=:,./-]+", str(path)) or "%" in str(path):
            raise UserError(f"--ssh-config {path}: pdsh takes no path with spaces or signs of a shell")
        return Ssh(str(path))

    def options(self) -> list[str]:
        """The words of the command line between `ssh` and the host."""
        words = ["-F", self.config] if self.config else []
        for option in (*OPTIONS, f"ConnectTimeout={CONNECT_TIMEOUT_S}"):
            words += ["-o", option]
        return words

    def address(self, host: str) -> str:
        """What a host's name stands for in the ssh_config. Other machines may know the name, but they do not have the file."""
        command = ["ssh", *self.options(), "-G", "--", host]
        listing = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        found = re.search(r"^hostname (\S+)$", listing.stdout, re.MULTILINE)
        return found[1] if found else host.rpartition("@")[2]

    def run(
        self, host: str, module: str, arguments: Sequence[str], timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        """Run a module of ours on a host. A timeout has exit code 255, like other failures of ssh."""
        command = ["ssh", *self.options(), "-T", "--", host, remote_command(module, arguments)]
        try:
            return subprocess.run(
                command, capture_output=True, text=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(command, FAILED, "", f"no answer within {timeout_s:.0f} s")


def remote_command(module: str, arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> str:
    """A line for the shell of a host: `python -m module` in this folder, with the variables that decide which code runs."""
    kept = [f"{name}={environment[name]}" for name in ("PYTHONPATH", "DS_ACCELERATOR") if name in environment]
    words = ["env", *kept, sys.executable, "-m", module, *arguments]
    return f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.join(words)}"


def last_line(text: str) -> str:
    """The last line that is not empty. ssh ends with its error; warnings come before."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it said nothing")
