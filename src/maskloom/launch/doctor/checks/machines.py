"""GPUs, CPU cores, memory and clocks of the hosts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from maskloom.launch.doctor.asking import Answer
from maskloom.launch.doctor.estimates import rank_bytes
from maskloom.launch.doctor.facts import Facts, Gpu
from maskloom.launch.doctor.findings import Finding, Level, Wanted, gib, grouped, same

SKEW_S = 1.0
LOW_MEMORY_SHARE = 0.9


def devices(wanted: Wanted, facts: Mapping[str, Facts]) -> list[Finding]:
    """A GPU for every slot, all of a kind; or no host with any, nor one that torch cannot use."""
    counts = {host: len(fact.gpus) for host, fact in facts.items()}
    without = tuple(host for host, count in counts.items() if not count)
    unusable = grouped({host: told for host in without if (told := facts[host].unusable_gpus)})
    bare = tuple(host for host in without if not facts[host].unusable_gpus)
    if len(without) == len(counts):
        found = [Finding("ok", "GPUs", bare, "none: ranks compute on CPUs")] if bare else []
        return found + [
            Finding("warn", "GPUs", hosts, f"{said}: ranks compute on CPUs", remedy)
            for (said, remedy), hosts in unusable.items()
        ]
    found = [Finding("fail", "GPUs", hosts, said, remedy) for (said, remedy), hosts in unusable.items()]
    if bare:
        remedy = "is the driver loaded? Look at nvidia-smi there"
        found.append(Finding("fail", "GPUs", bare, "none, and others have some", remedy))
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
