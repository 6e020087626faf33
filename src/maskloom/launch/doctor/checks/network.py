"""Hosts that are reached, and reach each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from maskloom.launch.doctor.asking import Answer
from maskloom.launch.doctor.facts import Facts
from maskloom.launch.doctor.findings import Finding, Wanted
from maskloom.launch.doctor.network import SLOW_SHARE, Speed, slow_hosts


def hosts_answer(answers: Sequence[Answer]) -> list[Finding]:
    """Which hosts were reached."""
    reached = tuple(answer.host for answer in answers if answer.facts)
    found = [Finding("ok", "hosts", reached, f"{len(reached)} answered")] if reached else []
    for answer in answers:
        if answer.silence:
            silence = answer.silence
            found.append(Finding("fail", "hosts", (answer.host,), f"{silence.name}: {silence.said}", silence.remedy))
    return found


def port(wanted: Wanted, facts: Mapping[str, Facts]) -> list[Finding]:
    """The first rank can listen."""
    master = next(iter(wanted.slots))
    if master not in facts:
        return []
    fact, remedy = facts[master], "another run's? Stop it, or choose another port"
    if wanted.port and not fact.is_port_free:
        return [Finding("fail", "port", (master,), f"{wanted.port} is taken", remedy)]
    if not fact.port:
        return [Finding("fail", "port", (master,), "none of those that belong to the run is free", remedy)]
    return [Finding("ok", "port", (master,), f"{fact.port} is free")]


def all_reduce(hosts: Sequence[str], measured: Speed | Mapping[str, str]) -> list[Finding]:
    """How fast the hosts sum, and which of them is slow."""
    if not isinstance(measured, Speed):
        remedy = (
            "do hosts reach each other on all ports? On several networks set GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME"
        )
        return [Finding("fail", "all-reduce", (host,), said, remedy) for host, said in measured.items()]
    value = (
        f"{measured.bytes_per_s / 1e9:.2f} GB/s of {measured.bytes >> 20} MiB over {measured.ranks} ranks "
        f"({measured.backend}), latency {measured.latency_s * 1e6:,.0f} us"
    )
    found = [Finding("ok", "all-reduce", tuple(hosts), value)]
    slow = slow_hosts(measured.pairs)
    best = max((speed for *_, speed in measured.pairs), default=0.0)
    found += [
        Finding(
            "warn",
            "all-reduce",
            (hosts[host],),
            f"{speed / 1e9:.2f} GB/s with its neighbours, the best pair {best / 1e9:.2f}: less than {SLOW_SHARE:.0%}",
            "look at its cable, switch port and other traffic: all ranks wait for it",
        )
        for host, speed in slow.items()
    ]
    return found
