"""What hosts told -> findings. Nothing is asked, read or measured here.

What a host found out about itself is a finding already: hosts that found the same are put together. The table `SAME` says what
must be the same on every host. What only shows beside other hosts has a function of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from maskloom.launch.doctor.hosts import Answer
from maskloom.launch.doctor.look import Facts, Level, Line
from maskloom.launch.doctor.network import SLOW_SHARE, Speed, slow_hosts

SKEW_S = 1.0
OTHER_FILE = "another file there: name one on a file system that all hosts share"
SAME: dict[str, tuple[Level, str]] = {
    # Of another version of these, a run computes or speaks differently; others are worth a warning.
    **{name: ("fail", f"install the same {name} there") for name in ("torch", "deepspeed", "maskloom")},
    **{name: ("warn", f"install the same {name} there") for name in ("python", "transformers", "numpy")},
    "maskloom's source": ("fail", "bring the same source there: it differs in its files"),
    "GPU kinds": ("warn", "the slowest sets the pace of all"),
    "CONFIG": ("fail", OTHER_FILE),
    "tokenizer": ("fail", OTHER_FILE),
    "data": ("fail", "another corpus there: ranks would read different rows"),
}
"""How bad it is if a host differs from most, and what to do."""
VERSIONS = ("python", "torch", "deepspeed", "maskloom", "transformers", "numpy", "maskloom's source")
ORDER = (
    *("hosts", "configuration", *VERSIONS, "GPUs", "GPU kinds", "GPU health", "clocks", "CPU cores", "memory"),
    *("CONFIG", "tokenizer", "run_dir", "disk space", "disk inodes", "data", "port", "lock", "FusedAdam"),
    *("operator builds",),
)
"""Of the table; a check of data has the corpus behind its name."""
UNREACHED = "do hosts reach each other on all ports? On several networks set GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME"


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    level: Level
    check: str
    hosts: tuple[str, ...]  # that it is about; none: the run as a whole
    value: str
    remedy: str = ""  # empty if all is well


def check(
    slots: Mapping[str, int], answers: Sequence[Answer], of_run: Sequence[tuple[str, Line]] = ()
) -> list[Finding]:
    """All findings but the network's, in the order of the table.

    Args:
        slots: ranks of each host.
        of_run: checks, and what the asking machine found out itself.
    """
    facts = {answer.host: answer.facts for answer in answers if answer.facts}
    lines: dict[tuple[str, Line], tuple[str, ...]] = dict.fromkeys(of_run, ())
    for host, fact in facts.items():
        for name, line in (*fact.lines, *gpus(fact, slots[host], any(fact.gpus for fact in facts.values()))):
            lines[name, line] = (*lines.get((name, line), ()), host)
    found = [Finding(level, name, hosts, value, remedy) for (name, (level, value, remedy)), hosts in lines.items()]
    for name in dict.fromkeys(name for fact in facts.values() for name in fact.same):
        found += same(name, {host: fact.same[name] for host, fact in facts.items() if name in fact.same})
    found += [*reached(answers), *clocks({answer.host: answer.skew_s for answer in answers if answer.facts})]
    return sorted(found, key=lambda finding: ORDER.index(_kind(finding.check)))


def same(name: str, values: Mapping[str, str]) -> Iterator[Finding]:
    """One `ok` if all hosts have the same value; otherwise also a finding for those that differ from most of them."""
    hosts = {value: tuple(host for host in values if values[host] == value) for value in values.values()}
    usual = max(hosts, key=lambda value: len(hosts[value]))  # of several, the first host's
    level, remedy = SAME[_kind(name)]
    if name == "python" and len({value.split(".")[1] for value in hosts}) > 1:
        level = "fail"
    if name == _kind(name):  # a corpus has a line that says more
        yield Finding("ok", name, hosts[usual], usual)
    for value in hosts:
        if value != usual:
            yield Finding(level, name, hosts[value], f"{value}, not {usual}", remedy)


def gpus(facts: Facts, slots: int, some_have: bool) -> Iterator[tuple[str, Line]]:
    """A GPU for every slot; or no host with any, nor one that torch cannot use."""
    if not facts.gpus and facts.unusable_gpus:
        said, remedy = facts.unusable_gpus
        yield "GPUs", ("fail", said, remedy) if some_have else ("warn", f"{said}: ranks compute on CPUs", remedy)
    elif not facts.gpus and some_have:
        yield "GPUs", ("fail", "none, and others have some", "is the driver loaded? Look at nvidia-smi there")
    elif not facts.gpus:
        yield "GPUs", ("ok", "none: ranks compute on CPUs", "")
    elif facts.gpus < slots:
        yield "GPUs", ("fail", f"{facts.gpus} for {slots} slots", f"write slots={facts.gpus}, or find out why")
    elif facts.gpus > slots:
        yield "GPUs", ("warn", f"{facts.gpus} for {slots} slot(s)", f"slots={facts.gpus} would use all")
    else:
        yield "GPUs", ("ok", "one for each slot", "")


def clocks(skews_s: Mapping[str, float]) -> Iterator[Finding]:
    """Clocks that go alike; this machine's counts as well."""
    well = tuple(host for host, skew_s in skews_s.items() if abs(skew_s) <= SKEW_S)
    if well:
        widest_s = max(0.01, *(abs(skews_s[host]) for host in well))
        yield Finding("ok", "clocks", well, f"within {widest_s:.2f} s of this machine's")
    for host, skew_s in skews_s.items():
        if host not in well:
            value = f"{abs(skew_s):.1f} s {'ahead of' if skew_s > 0 else 'behind'} this machine's"
            yield Finding("warn", "clocks", (host,), value, "start chrony or ntpd there: times in logs would mislead")


def reached(answers: Sequence[Answer]) -> Iterator[Finding]:
    """Which hosts answered."""
    if names := tuple(answer.host for answer in answers if answer.facts):
        yield Finding("ok", "hosts", names, f"{len(names)} answered")
    for answer in answers:
        if answer.silence:
            level, value, remedy = answer.silence
            yield Finding(level, "hosts", (answer.host,), value, remedy)


def all_reduce(hosts: Sequence[str], measured: Speed | Mapping[str, str]) -> Iterator[Finding]:
    """How fast the hosts sum, and which of them is slow."""
    if not isinstance(measured, Speed):
        for host, said in measured.items():
            yield Finding("fail", "all-reduce", (host,), said, UNREACHED)
        return
    rate = f"{measured.bytes_per_s / 1e9:.2f} GB/s of {measured.bytes >> 20} MiB over {measured.ranks} ranks"
    value = f"{rate} ({measured.backend}), latency {measured.latency_s * 1e6:,.0f} us"
    yield Finding("ok", "all-reduce", tuple(hosts), value)
    best = max((speed for *_, speed in measured.pairs), default=0.0)
    for number, speed in slow_hosts(measured.pairs).items():
        beside = f"{speed / 1e9:.2f} GB/s with its neighbours, the best pair {best / 1e9:.2f}"
        remedy = "look at its cable, switch port and other traffic: all ranks wait for it"
        yield Finding("warn", "all-reduce", (hosts[number],), f"{beside}: less than {SLOW_SHARE:.0%}", remedy)


def _kind(check: str) -> str:
    return "data" if check.startswith("data ") else check
