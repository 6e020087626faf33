"""The run's folder and its corpora: there for all hosts, the same, whole, nobody else's, and with room for what comes."""

from __future__ import annotations

from collections.abc import Mapping

from maskloom.launch.doctor.estimates import checkpoint_bytes, checkpoints_at_most
from maskloom.launch.doctor.facts import Corpus, Facts
from maskloom.launch.doctor.findings import Finding, Level, Wanted, gib, grouped, same

FILES_A_RANK = 2
SPARE_INODES = 1000


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


def lock(wanted: Wanted, facts: Mapping[str, Facts]) -> list[Finding]:
    """Nobody else runs in the run's folder."""
    if not wanted.lock_holder:
        return []
    return [
        Finding(
            "fail", "lock", (), f"the run is in use by {wanted.lock_holder}", "wait for it, stop it, or set run_dir"
        )
    ]
