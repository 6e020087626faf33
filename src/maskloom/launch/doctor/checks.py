"""Facts of all hosts -> findings. Pure: nothing is asked, read or measured here.

`fail` is what would end a run or make it another one on one host than on the next; `warn` is what a run lives with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from maskloom.config import RunConfig
from maskloom.launch.doctor.asking import Answer
from maskloom.launch.doctor.facts import Corpus, Facts, Gpu
from maskloom.launch.doctor.network import SLOW_SHARE, Speed, slow_hosts

Level = Literal["ok", "warn", "fail"]
SKEW_S = 1.0
FILES_A_RANK = 2
SPARE_INODES = 1000
LOW_MEMORY_SHARE = 0.9
FAILING_PACKAGES = ("torch", "deepspeed", "maskloom")
"""Another version of these speaks or computes differently; of the others it is worth a warning."""
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


def check(wanted: Wanted, answers: Sequence[Answer]) -> list[Finding]:
    """All findings but the network's, in the order of the table."""
    facts = {answer.host: answer.facts for answer in answers if answer.facts}
    found = [*hosts_answer(answers), *configuration(wanted, facts)]
    if not facts:
        return found
    for part in (versions, devices, gpu_health):
        found += part(wanted, facts)
    found += clocks(answers)
    for part in (cores, memory, files, folder, disk, corpora, port, lock, operators):
        found += part(wanted, facts)
    return found


def hosts_answer(answers: Sequence[Answer]) -> list[Finding]:
    """Which hosts were reached."""
    reached = tuple(answer.host for answer in answers if answer.facts)
    found = [Finding("ok", "hosts", reached, f"{len(reached)} answered")] if reached else []
    for answer in answers:
        if answer.silence:
            silence = answer.silence
            found.append(Finding("fail", "hosts", (answer.host,), f"{silence.name}: {silence.said}", silence.remedy))
    return found


def configuration(wanted: Wanted, facts: Mapping[str, Facts]) -> list[Finding]:
    """What a run refuses before it starts: its configuration, tokenizer, lanes, precision and ZeRO stage."""
    if wanted.config_fault or not wanted.config:
        return [Finding("fail", "configuration", (), wanted.config_fault or "", "correct it")]
    known = {corpus.fault for fact in facts.values() for corpus in fact.corpora}
    refusals = {host: fact.refusal for host, fact in facts.items() if fact.refusal}
    found = [
        Finding("fail", "configuration", hosts, str(refusal), "a run would end with this")
        for refusal, hosts in grouped(refusals).items()
        if refusal not in known
    ]
    if refusals or not facts:
        return found
    engine, parameters = wanted.config.engine, next(iter(facts.values())).parameters
    size = f", {parameters:,} parameters" if parameters else ""
    value = f"{wanted.world_size} rank(s), precision {engine.precision}, ZeRO {engine.zero_stage}{size}"
    return [Finding("ok", "configuration", (), value)]


def versions(wanted: Wanted, facts: Mapping[str, Facts]) -> list[Finding]:
    """The same Python, packages and source on every host."""

    def minor(version: str) -> str:
        return ".".join(version.split(".")[:2])

    pythons = {host: fact.python for host, fact in facts.items()}
    level: Level = "fail" if len({minor(version) for version in pythons.values()}) > 1 else "warn"
    found = same("python", pythons, level, "install the same Python there")
    for name in next(iter(facts.values())).packages:
        values = {host: fact.packages.get(name, "missing") for host, fact in facts.items()}
        missing = tuple(host for host, value in values.items() if value == "missing")
        if missing:
            found.append(Finding("fail", name, missing, "not installed", f"install {name} there"))
            values = {host: value for host, value in values.items() if value != "missing"}
        level = "fail" if name in FAILING_PACKAGES else "warn"
        found += same(name, values, level, f"install the same {name} there") if values else []
    sources = {host: fact.source for host, fact in facts.items()}
    return found + same("maskloom's source", sources, "fail", "bring the same source there: it differs in its files")


def devices(wanted: Wanted, facts: Mapping[str, Facts]) -> list[Finding]:
    """A GPU for every slot, all of a kind; or no host with any."""
    counts = {host: len(fact.gpus) for host, fact in facts.items()}
    without = tuple(host for host, count in counts.items() if not count)
    if len(without) == len(counts):
        return [Finding("ok", "GPUs", tuple(counts), "none: ranks compute on CPUs")]
    found = []
    if without:
        remedy = "is the driver loaded? Look at nvidia-smi there"
        found.append(Finding("fail", "GPUs", without, "none, and others have some", remedy))
    for host, count in counts.items():
        slots = wanted.slots[host]
        if 0 < count < slots:
            found.append(
                Finding("fail", "GPUs", (host,), f"{count} for {slots} slots", f"write slots={count}, or find out")
            )
        elif count > slots:
            found.append(
                Finding("warn", "GPUs", (host,), f"{count} for {slots} slot(s)", f"slots={count} would use all")
            )
    kinds = {host: ", ".join(sorted({gpu.name for gpu in fact.gpus})) for host, fact in facts.items() if fact.gpus}
    if not found:
        found = [Finding("ok", "GPUs", tuple(counts), "one for each slot")]
    return found + same("GPU kinds", kinds, "warn", "the slowest sets the pace of all")


def gpu_health(wanted: Wanted, facts: Mapping[str, Facts]) -> list[Finding]:
    """Errors, throttling, others on the GPU, its memory."""
    if not any(fact.gpus for fact in facts.values()):
        return []
    found = []
    for host, fact in facts.items():
        needed = rank_bytes(wanted.config, fact.parameters, wanted.world_size)
        for number, gpu in enumerate(fact.gpus[: wanted.slots[host]]):
            found += [
                Finding(level, "GPU health", (host,), f"GPU {number}: {value}", remedy)
                for level, value, remedy in gpu_faults(gpu, needed)
            ]
    well = tuple(host for host, fact in facts.items() if fact.gpus and not any(host in bad.hosts for bad in found))
    said = "products exact, no uncorrected errors, no throttling, nobody else"
    return [*([Finding("ok", "GPU health", well, said)] if well else []), *found]


def gpu_faults(gpu: Gpu, needed_bytes: int) -> list[tuple[Level, str, str]]:
    """(level, what, remedy) of what is wrong with one GPU that is to hold so many bytes."""
    found: list[tuple[Level, str, str]] = []
    if gpu.fault:
        found.append(("fail", gpu.fault, "take the host out of the hostfile and have the GPU looked at"))
    if gpu.uncorrected_errors:
        found.append(
            ("fail", f"{gpu.uncorrected_errors} uncorrected memory error(s)", "reset it, or take the host out")
        )
    if gpu.slowed_by:
        found.append(("warn", f"slowed down: {', '.join(gpu.slowed_by)}", "look at its cooling and power"))
    if gpu.processes:
        found.append(("warn", f"in use by {', '.join(gpu.processes)}", "stop it, if it is what an earlier run left"))
    free, total = gpu.memory_free_bytes, gpu.memory_total_bytes
    if free is not None and free < needed_bytes:
        value = f"{gib(free)} free, weights, gradients and moments are {gib(needed_bytes)}"
        found.append(("fail", value, "free it, raise engine.zero_stage, or use more ranks"))
    elif free is not None and total is not None and free < LOW_MEMORY_SHARE * total:
        found.append(("warn", f"{gib(free)} of {gib(total)} free", "something else holds the rest"))
    return found


def clocks(answers: Sequence[Answer]) -> list[Finding]:
    """Clocks that go alike; ours counts as well."""
    skews = {answer.host: answer.skew_s for answer in answers if answer.facts}
    off = {host: skew for host, skew in skews.items() if abs(skew) > SKEW_S}
    if not off:
        widest = max((abs(skew) for skew in skews.values()), default=0.0)
        return [Finding("ok", "clocks", tuple(skews), f"within {max(widest, 0.01):.2f} s of this machine's")]
    remedy = "start chrony or ntpd there: times in logs and of files would mislead"
    return [
        Finding(
            "warn",
            "clocks",
            (host,),
            f"{abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} this machine's",
            remedy,
        )
        for host, skew in off.items()
    ]


def cores(wanted: Wanted, facts: Mapping[str, Facts]) -> list[Finding]:
    """A core for each rank and each of its reader processes."""
    workers = wanted.config.data.workers if wanted.config else 0
    found, well = [], {}
    for host, fact in facts.items():
        processes = wanted.slots[host] * (1 + workers)
        if fact.cores < processes:
            value = f"{fact.cores} for {processes} processes ({wanted.slots[host]} rank(s), {workers} reader(s) each)"
            found.append(
                Finding("warn", "CPU cores", (host,), value, "they wait for each other: fewer slots or data.workers")
            )
        else:
            well[host] = f"{fact.cores}"
    return [*(Finding("ok", "CPU cores", hosts, value) for value, hosts in grouped(well).items()), *found]


def memory(wanted: Wanted, facts: Mapping[str, Facts]) -> list[Finding]:
    """Room for what ranks on CPUs hold at least."""
    found, least = [], None
    for host, fact in facts.items():
        needed = 0
        if fact.device == "cpu":
            needed = wanted.slots[host] * rank_bytes(wanted.config, fact.parameters, wanted.world_size)
        least = fact.memory_free_bytes if least is None else min(least, fact.memory_free_bytes)
        if fact.memory_free_bytes < needed:
            value = f"{gib(fact.memory_free_bytes)} free, weights, gradients and moments are {gib(needed)}"
            found.append(Finding("fail", "memory", (host,), value, "fewer slots, or a higher engine.zero_stage"))
    well = tuple(host for host in facts if not any(host in bad.hosts for bad in found))
    return [*([Finding("ok", "memory", well, f"at least {gib(least or 0)} free")] if well else []), *found]


def files(wanted: Wanted, facts: Mapping[str, Facts]) -> list[Finding]:
    """Files that every rank reads, the same on every host."""
    found = []
    readings: list[tuple[str, Callable[[Facts], str | None]]] = [("CONFIG", lambda fact: fact.config_digest)]
    if wanted.config:
        readings.append(("tokenizer", lambda fact: fact.tokenizer_digest))
    for name, read in readings:
        digests = {host: read(fact) for host, fact in facts.items()}
        without = tuple(host for host, digest in digests.items() if digest is None)
        if without:
            remedy = "name a file on a file system that all hosts share"
            found.append(Finding("fail", name, without, "cannot be read", remedy))
        seen = {host: digest for host, digest in digests.items() if digest is not None}
        if seen:
            found += same(name, seen, "fail", "another file there: name one on a file system that all hosts share")
    return found


def folder(wanted: Wanted, facts: Mapping[str, Facts]) -> list[Finding]:
    """The run's folder: one and the same for all, and one that can be written."""
    if not wanted.config:
        return []
    found = []
    if wanted.folder_fault:
        found.append(
            Finding("fail", "run_dir", (), wanted.folder_fault, "choose another folder, or have it made writable")
        )
    runs = {host: fact.run for host, fact in facts.items() if fact.run}
    others = tuple(host for host, run in runs.items() if run.sees_token is False)
    if others:
        value = f"{wanted.config.run_dir} is another folder there"
        found.append(Finding("fail", "run_dir", others, value, "set run_dir to a folder on a shared file system"))
    faults = {host: run.fault for host, run in runs.items() if run.fault}
    for fault, hosts in grouped(faults).items():
        if fault != wanted.folder_fault:
            remedy = "choose another folder, or have it made writable"
            found.append(Finding("fail", "run_dir", hosts, str(fault), remedy))
    if found:
        return found
    return [Finding("ok", "run_dir", tuple(runs), f"{wanted.config.run_dir} can be written")]


def disk(wanted: Wanted, facts: Mapping[str, Facts]) -> list[Finding]:
    """Room for all checkpoints that will ever stand side by side."""
    first = next(iter(facts.values()))
    if not wanted.config or not first.run or not first.parameters or first.run.free_bytes is None:
        return []
    room, config = first.run, wanted.config
    each = round(checkpoint_bytes(config, first.parameters))
    count = max(1, checkpoints_at_most(config) - wanted.saved)
    value = f"{gib(room.free_bytes or 0)} free, {count} checkpoint(s) of about {gib(each)} to come"
    found = []
    if (room.free_bytes or 0) < each * count:
        remedy = "free space, lower checkpoint.keep_last, or set run_dir to another file system"
        found.append(Finding("fail", "disk space", (), value, remedy))
    else:
        found.append(Finding("ok", "disk space", (), value))
    needed = count * (FILES_A_RANK * wanted.world_size) + SPARE_INODES
    if room.free_inodes is not None and room.free_inodes < needed:
        value = f"{room.free_inodes:,} inodes free, {needed:,} are wanted"
        found.append(
            Finding("fail", "disk inodes", (), value, "remove files there, or set run_dir to another file system")
        )
    return found


def corpora(wanted: Wanted, facts: Mapping[str, Facts]) -> list[Finding]:
    """Every corpus opens on every host, is the same there, and the blocks that were tried are what was indexed."""
    found = []
    by_path: dict[str, dict[str, Corpus]] = {}
    for host, fact in facts.items():
        for corpus in fact.corpora:
            by_path.setdefault(corpus.path, {})[host] = corpus
    for path, seen in by_path.items():
        name = f"data {path}"
        faults = {host: (corpus.fault, corpus.is_skipped) for host, corpus in seen.items() if corpus.fault}
        for (fault, is_skipped), hosts in grouped(faults).items():
            level: Level = "warn" if is_skipped else "fail"
            remedy = "a run passes over it (data.on_bad_data: skip)" if is_skipped else "a run would end there"
            found.append(Finding(level, name, hosts, str(fault), remedy))
        digests = {host: corpus.digest for host, corpus in seen.items() if corpus.digest}
        if len(set(digests.values())) > 1:
            found += same(name, digests, "fail", "another corpus there: ranks would read different rows")
        well = tuple(host for host in seen if host not in faults)
        if well:
            tried, blocks = (f"{value:,}" for value in (sum(seen[host].read for host in well), seen[well[0]].blocks))
            found.append(Finding("ok", name, well, f"{blocks} blocks; {tried} read and verified"))
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


def lock(wanted: Wanted, facts: Mapping[str, Facts]) -> list[Finding]:
    """Nobody else runs in the run's folder."""
    if not wanted.lock_holder:
        return []
    return [
        Finding(
            "fail", "lock", (), f"the run is in use by {wanted.lock_holder}", "wait for it, stop it, or set run_dir"
        )
    ]


def operators(wanted: Wanted, facts: Mapping[str, Facts]) -> list[Finding]:
    """DeepSpeed's FusedAdam on GPUs, and what killed builds left."""
    found = []
    fused = {host: fact.fused_adam for host, fact in facts.items() if fact.fused_adam}
    for value, hosts in grouped(fused).items():
        is_less = str(value).startswith("torch's")
        remedy = "install nvcc and ninja for DeepSpeed's; a run goes on with torch's" if is_less else ""
        found.append(Finding("warn" if is_less else "ok", "FusedAdam", hosts, str(value), remedy))
    locks = {host: fact.stale_locks for host, fact in facts.items() if fact.stale_locks}
    for paths, hosts in grouped(locks).items():
        remedy = (
            "remove it: programs that build this extension wait for it for ever (a run of maskloom removes its own)"
        )
        found.append(Finding("warn", "operator builds", hosts, f"killed build left {', '.join(paths)}", remedy))
    return found


def network(hosts: Sequence[str], measured: Speed | Mapping[str, str]) -> list[Finding]:
    """What the all-reduce showed."""
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


def exit_code(findings: Sequence[Finding]) -> int:
    """1 where a run would fail."""
    return int(any(finding.level == "fail" for finding in findings))


# Numbers


def bytes_of_numbers(config: RunConfig) -> int:
    """Of one weight as it is computed with; `auto` counts as fp32, the larger."""
    return 2 if config.engine.precision in ("bf16", "fp16") else 4


def checkpoint_bytes(config: RunConfig, parameters: int) -> float:
    """Of one checkpoint, all ranks' files together: weights, ZeRO's fp32 copy of them, and the optimizer's moments."""
    width, stage = bytes_of_numbers(config), config.engine.zero_stage
    weights = 0 if stage == 3 else width
    copy = 4 if stage or width == 2 else 0
    moments = 8 if config.optimizer.name != "muon" else 4  # of the matrices, which are nearly all, it has one
    return parameters * (weights + copy + moments)


def checkpoints_at_most(config: RunConfig) -> int:
    """Checkpoints that stand side by side at the fullest moment: the new one is whole before the oldest goes."""
    settings, steps = config.checkpoint, config.total_steps
    every = settings.every_steps or steps
    saves = -(-steps // every)
    kept_for_good = steps // math.lcm(every, settings.keep_every_steps) if settings.keep_every_steps else 0
    return min(saves, settings.keep_last + 1 + kept_for_good)


def rank_bytes(config: RunConfig | None, parameters: int | None, world_size: int) -> int:
    """What a rank holds at least: weights, gradients, and its share of the optimizer's state. No activations."""
    if not config or not parameters:
        return 0
    width, stage = bytes_of_numbers(config), config.engine.zero_stage
    states = (8 if config.optimizer.name != "muon" else 4) + (4 if width == 2 else 0)
    whole, shared = {0: (2 * width + states, 0), 1: (2 * width, states), 2: (width, width + states)}.get(
        stage, (0, 2 * width + states)
    )
    return int(parameters * (whole + shared / world_size))


# Hosts


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
