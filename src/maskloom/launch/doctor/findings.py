"""What checks take and give, and how findings about many hosts are put together."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from maskloom.config import RunConfig

Level = Literal["ok", "warn", "fail"]
GIB = 1 << 30
Value = TypeVar("Value", bound=Hashable)


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
        check: what was looked at.
        hosts: that it is about; none: the run as a whole.
        value: what was found.
        remedy: what to do; empty where all is well.
    """

    level: Level
    check: str
    hosts: tuple[str, ...]
    value: str
    remedy: str = ""


@dataclass(frozen=True)
class Wanted:
    """What the run asks of its hosts, and what the asking machine found out itself.

    Attributes:
        slots: ranks of each host, in their order.
        config: None where it could not be read; `config_fault` says why.
        folder_fault: why the asking machine could not write into the run's folder.
        lock_holder: who holds the run's lock.
        saved: checkpoints that the run has.
        port: that the first rank is told to listen on; 0: the first free one of those that belong to the run.
    """

    slots: Mapping[str, int]
    config: RunConfig | None
    config_fault: str | None = None
    folder_fault: str | None = None
    lock_holder: str | None = None
    saved: int = 0
    port: int = 0

    @property
    def world_size(self) -> int:
        return sum(self.slots.values())


def exit_code(findings: Sequence[Finding]) -> int:
    """1 where a run would fail."""
    return int(any(finding.level == "fail" for finding in findings))


def grouped(values: Mapping[str, Value]) -> dict[Value, tuple[str, ...]]:
    """Value -> the hosts that have it, in the order of the first."""
    groups: dict[Value, tuple[str, ...]] = {}
    for host, value in values.items():
        groups[value] = (*groups.get(value, ()), host)
    return groups


def same(check: str, values: Mapping[str, Any], level: Level, remedy: str) -> list[Finding]:
    """One `ok` where all hosts have the same value; otherwise a finding for those that differ from most of them."""
    groups = grouped(values)
    usual = max(groups, key=lambda value: len(groups[value]))  # of several, the first host's
    found = [Finding("ok", check, groups[usual], str(usual))]
    return found + [
        Finding(level, check, hosts, f"{value}, not {usual}", remedy)
        for value, hosts in groups.items()
        if value != usual
    ]


def gib(count: float) -> str:
    """Bytes for people."""
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / (1 << 20):.1f} MiB"
