"""Check, before GPUs are spent on it, whether a run would start and go on: on this machine, or on the hosts of a hostfile.

A line a check, with the hosts it is about. FAIL is what would end a run (exit code 1); warn is what a run lives with (0).

example:
  maskloom doctor --hostfile hosts configs/bert_base.yaml run_dir=/shared/runs/first
"""

from __future__ import annotations

import argparse
import socket
import textwrap
from collections import Counter
from collections.abc import Sequence

from maskloom.commands.arguments import positive
from maskloom.errors import UserError
from maskloom.launch.doctor.asking import Way
from maskloom.launch.doctor.findings import Finding, exit_code
from maskloom.launch.doctor.visit import visit
from maskloom.launch.environment import for_hosts
from maskloom.launch.hostfile import Host, read_hostfile
from maskloom.launch.ssh import Ssh
from maskloom.program import add_overrides
from maskloom.progress import complain, show

MARKS = {"ok": "ok", "warn": "warn", "fail": "FAIL"}
MOST_NAMES = 4
WRAPPER = textwrap.TextWrapper(100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
"""Paths stay whole, to be copied."""


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("config", metavar="CONFIG", help="YAML file of the run")
    add_overrides(parser)
    where = parser.add_mutually_exclusive_group().add_argument
    where("--hostfile", metavar="FILE", help="hosts with their slots, as deepspeed reads it")
    where("--processes", type=positive, help="ranks on this machine; default: one a GPU; 1 where there is none")
    add("--ssh-config", metavar="FILE", help="with --hostfile: configuration of ssh in place of your own")
    add("--master-addr", help="with --hostfile: address of the first host as the others reach it")
    add(
        "--port",
        type=positive,
        help="where you choose it for deepspeed or torchrun; default: one that belongs to the run",
    )


def run(options: argparse.Namespace) -> int:
    if options.hostfile is None and (options.ssh_config or options.master_addr):
        raise UserError("--ssh-config and --master-addr are for --hostfile, which is not given")
    if options.hostfile:
        hosts, way, environment = read_hostfile(options.hostfile), Way(Ssh.of(options.ssh_config)), for_hosts()
    else:
        hosts, way, environment = (Host(socket.gethostname(), options.processes or _gpus() or 1),), Way(), {}
    ranks = sum(host.slots for host in hosts)
    complain(f"{len(hosts)} host(s), {ranks} rank(s); this takes about half a minute")
    findings = list(
        visit(hosts, way, options.config, options.overrides, environment, options.master_addr, options.port or 0)
    )
    show(table(findings))
    show(f"\n{ending(findings)}")
    return exit_code(findings)


def table(findings: Sequence[Finding]) -> str:
    """The findings as aligned text: mark, check, hosts, value; what to do stands below where anything is to be done."""
    rows = [(MARKS[found.level], found.check, names(found.hosts)) for found in findings]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    indent = " " * (sum(widths) + 2 * len(widths))
    lines = []
    for row, found in zip(rows, findings, strict=True):
        text = [*found.value.splitlines(), *([f"-> {found.remedy}"] if found.remedy else [])]
        parts = [part for line in text for part in WRAPPER.wrap(line)] or [""]
        head = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines += [f"{head}  {parts[0]}".rstrip(), *(f"{indent}{part}" for part in parts[1:])]
    return "\n".join(lines)


def names(hosts: Sequence[str]) -> str:
    """`node1, node2`, or of many the first ones and how many more."""
    more = f" and {len(hosts) - MOST_NAMES} more" if len(hosts) > MOST_NAMES else ""
    return ", ".join(hosts[:MOST_NAMES]) + more


def ending(findings: Sequence[Finding]) -> str:
    """One line: would a run start?"""
    counts = Counter(found.level for found in findings)
    said = f"{len(findings)} checks: {counts['ok']} ok, {counts['warn']} warning(s), {counts['fail']} failure(s)"
    return f"{said}. A run would fail" if counts["fail"] else f"{said}. A run can start"


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
