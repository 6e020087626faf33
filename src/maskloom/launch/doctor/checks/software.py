"""The same configuration, packages, source and files on every host, and operators that can be had there."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from maskloom.launch.doctor.facts import Facts
from maskloom.launch.doctor.findings import Finding, Level, Wanted, grouped, same

FAILING_PACKAGES = ("torch", "deepspeed", "maskloom")
"""Another version of these speaks or computes differently; of the others it is worth a warning."""


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
