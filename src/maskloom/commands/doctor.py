"""Check whether a run would start and keep running, before GPUs are spent on it: here, or on the hosts of a hostfile.

A line a check, with the hosts it is about. FAIL is what would end a run (exit code 1); warn is what a run lives with (0).

example:
  maskloom doctor --hostfile hosts configs/bert_base.yaml run_dir=/shared/runs/first
"""

from __future__ import annotations

import argparse
import contextlib
import secrets
import socket
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from maskloom.commands.arguments import positive
from maskloom.config_file import load_config
from maskloom.errors import UserError
from maskloom.launch.doctor.checks import Finding, all_reduce, check
from maskloom.launch.doctor.hosts import Way, ask
from maskloom.launch.doctor.look import Line, Request, nearest
from maskloom.launch.doctor.network import measure
from maskloom.launch.environment import for_hosts
from maskloom.launch.hostfile import Host, read_hostfile
from maskloom.launch.probe import preferred_port
from maskloom.launch.ssh import Ssh
from maskloom.program import add_overrides
from maskloom.progress import complain, show
from maskloom.train.run_lock import holder_of
from maskloom.world import LOOPBACK

MARKS = {"ok": "ok", "warn": "warn", "fail": "FAIL"}
MOST_NAMES = 4
ANSWER_S = 300.0
SUM_BYTES = 64 << 20
SUM_S = 60.0
WRAPPER = textwrap.TextWrapper(100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
"""Paths stay whole, to be copied."""


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("config", metavar="CONFIG", help="YAML file of the run")
    add_overrides(parser)
    where = parser.add_mutually_exclusive_group().add_argument
    where("--hostfile", metavar="FILE", help="hosts with their slots, as deepspeed reads it")
    where("--processes", type=positive, help="ranks on this machine; default: one a GPU; 1 without GPUs")
    add("--ssh-config", metavar="FILE", help="with --hostfile: an ssh_config file to use instead of your own")
    add("--master-addr", help="with --hostfile: address of the first host as the others reach it")
    add(
        "--port",
        type=positive,
        help="if you choose it for deepspeed or torchrun; default: one that belongs to the run",
    )


def run(options: argparse.Namespace) -> int:
    if options.hostfile is None and (options.ssh_config or options.master_addr):
        raise UserError("--ssh-config and --master-addr are for --hostfile, which is not given")
    if options.hostfile:
        hosts, way, environment = read_hostfile(options.hostfile), Way(Ssh.of(options.ssh_config)), for_hosts()
    else:
        hosts, way, environment = (Host(socket.gethostname(), options.processes or _gpus() or 1),), Way(), {}
    complain(f"{len(hosts)} host(s), {sum(host.slots for host in hosts)} rank(s); this takes about half a minute")
    findings = list(visit(hosts, way, environment, options))
    show(table(findings))
    show(f"\n{ending(findings)}")
    return int(any(finding.level == "fail" for finding in findings))


def visit(
    hosts: Sequence[Host], way: Way, environment: dict[str, str], options: argparse.Namespace
) -> Iterator[Finding]:
    """Ask every host, check what they tell, and let them sum together.

    Args:
        environment: variables that ranks on the hosts will have.
    """
    of_run: list[tuple[str, Line]] = []
    run = None
    try:
        run = Path(load_config(options.config, options.overrides).run_dir)
    except UserError as error:
        of_run.append(("configuration", ("fail", str(error), "correct it")))
    if run and (holder := holder_of(run)):
        of_run.append(("lock", ("fail", f"the run is in use by {holder}", "wait for it, stop it, or set run_dir")))
    slots = {host.name: host.slots for host in hosts}
    with left_file(run) as (left, fault):
        if fault:
            of_run.append(("run_dir", ("fail", fault, "choose another folder, or have it made writable")))
        requests = [
            Request(
                number=number,
                slots=host.slots,
                world_size=sum(slots.values()),
                first_rank=sum(before.slots for before in hosts[:number]),
                config=options.config,
                overrides=tuple(options.overrides),
                run_dir=str(run or ""),
                left_file=left,
                port=0 if number else options.port or preferred_port(run or Path(), 1),
                needs_port=bool(options.port),
                environment=environment,
            )
            for number, host in enumerate(hosts)
        ]
        answers = ask(list(slots), requests, way, ANSWER_S)
    yield from check(slots, answers, of_run)
    there = {answer.host: answer.facts for answer in answers if answer.facts}
    if sum(slots[name] for name in there) > 1:
        first = next(iter(there))
        given = options.master_addr if first == hosts[0].name else None
        address = LOOPBACK if not way.ssh else given or way.ssh.address(first)
        master = address, there[first].spare_port
        measured = measure({name: slots[name] for name in there}, way, master, SUM_BYTES, SUM_S, environment)
        yield from all_reduce(list(there), measured)


@contextlib.contextmanager
def left_file(run: Path | None) -> Iterator[tuple[str, str]]:
    """A file of a name that nobody can guess in the run's folder, for the block: its path, or why it could not be made."""
    path, fault = nearest(run) / f".doctor-{secrets.token_hex(16)}" if run else None, ""
    try:
        if path:
            path.touch()
    except OSError as error:
        path, fault = None, str(error)
    try:
        yield str(path or ""), fault
    finally:
        if path:
            path.unlink(missing_ok=True)


def table(findings: Sequence[Finding]) -> str:
    """The findings as aligned text: mark, check, hosts, value; what to do stands below, if anything."""
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
