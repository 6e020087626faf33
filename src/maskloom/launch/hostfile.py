"""The hostfile: which machines, and how many ranks on each. Checked here, before ssh, pdsh or DeepSpeed see a word of it.

    node1 slots=8        # a comment
    ada@node2 slots=8

DeepSpeed 0.19.8 trains on this machine alone if the file does not exist. It takes 0 slots, ignores what stands behind the number,
and hands any name to ssh: `-oProxyCommand=...` would run a program here. So a name must begin with a letter or digit, and every
fault is reported with its line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from maskloom.errors import UserError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
LINE = re.compile(r"(\S+)[ \t]+slots=([0-9]{1,6})[ \t]*(#.*)?")


@dataclass(frozen=True)
class Host:
    """A machine, by the name that ssh gets (`node1`, `ada@node1`), and how many ranks run there."""

    name: str
    slots: int

    @property
    def address(self) -> str:
        """Without the user: what other machines call it."""
        return self.name.rpartition("@")[2]


def read_hostfile(path: str | Path) -> tuple[Host, ...]:
    """The hosts in the order of their ranks.

    Raises:
        UserError: there is no such file, or anything in it is wrong (all faults, with their lines).
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no hostfile at {path} (it has lines such as `node1 slots=8`)")
    return parse_hostfile(path.read_text(encoding="utf-8", errors="replace"), str(path))


def parse_hostfile(text: str, where: str) -> tuple[Host, ...]:
    """As `read_hostfile`, of a text; `where` names it in messages."""
    hosts: list[Host] = []
    faults: list[str] = []
    lines: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        fault, host = _read_line(line)
        if host and (first := lines.setdefault(host.address.lower(), number)) != number:
            fault = f"{host.address} stands in line {first} already: give its ranks in one line"
        if fault:
            faults.append(f"  line {number}: {fault}")
        elif host:
            hosts.append(host)
    if not hosts and not faults:
        faults.append("  it names no host")
    if faults:
        raise UserError(f"hostfile {where}:\n" + "\n".join(faults))
    return tuple(hosts)


def as_hostfile(hosts: Sequence[Host]) -> str:
    """The text that `parse_hostfile` and DeepSpeed read as these hosts."""
    return "".join(f"{host.name} slots={host.slots}\n" for host in hosts)


def _read_line(line: str) -> tuple[str | None, Host | None]:
    """What is wrong with a line, or the host that it names."""
    match = LINE.fullmatch(line)
    if not match:
        return f"{line!r} is not NAME slots=N", None
    name, slots = match[1], int(match[2])
    user, at, address = name.rpartition("@")
    if address.count(":") > 1:
        return f"{address!r}: pdsh takes no IPv6 address; give the machine a name in /etc/hosts or ~/.ssh/config", None
    if ":" in address:
        return f"{address!r}: pdsh takes no port; set it in ~/.ssh/config", None
    if not NAME.fullmatch(address):
        return f"{address!r} is no name of a machine (letters, digits, '.', '_', '-'; a letter or digit first)", None
    if at and not USER.fullmatch(user):
        return f"{user!r} is no name of a user (letters, digits, '.', '_', '-'; not '-' first)", None
    if slots < 1:
        return f"{name} has slots={slots}: at least 1, or leave the line out", None
    return None, Host(name, slots)
