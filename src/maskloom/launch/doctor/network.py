"""How fast the hosts sum: a small job of the run's real ranks, over its real backend.

    python -m maskloom.launch.doctor.network     on every host: its ranks time an all-reduce together

An all-reduce is as slow as its slowest host, so it cannot tell which one that is. After it the hosts send to each other in pairs,
along a ring: a host is slow if both of its pairs are.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import repeat

from pydantic import TypeAdapter

from maskloom.launch.doctor.hosts import Way, run_on_all
from maskloom.launch.doctor.look import end_with_stdin
from maskloom.launch.ssh import last_line
from maskloom.processes import Pool
from maskloom.program import run_program

PAIR_BYTES = 16 << 20
REPEATS = 3
SMALL_REPEATS = 20
GRACE_S = 5.0
SLOW_SHARE = 1 / 3
"""A host whose best pair has less than this share of the best pair of all is far slower than the others."""
Pair = tuple[int, int, float]
"""Two hosts, and the bytes a second between them."""


@dataclass(frozen=True)
class Trial:
    """What a host is told of the job."""

    host: int
    slots: tuple[int, ...]  # ranks of every host
    master_addr: str
    master_port: int
    bytes: int  # to be summed
    limit_s: float  # until ranks give up
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Speed:
    """What the job measured."""

    backend: str
    ranks: int
    bytes: int  # that each rank summed
    bytes_per_s: float  # bus bandwidth, as nccl-tests have it: 2 (n - 1) / n of the bytes over the time
    latency_s: float  # of an all-reduce of four bytes
    pairs: tuple[Pair, ...] = ()  # along the ring of hosts; none for one host


TRIAL, SPEED = TypeAdapter(Trial), TypeAdapter(Speed)


def measure(
    slots: Mapping[str, int], way: Way, master: tuple[str, int], size: int, limit_s: float, environment: dict[str, str]
) -> Speed | dict[str, str]:
    """Run the job. Returns what it measured, or what each host said whose ranks failed.

    Args:
        slots: ranks of each host.
        master: address and port of the first rank.
        size: bytes to sum.
    """
    hosts, counts = list(slots), tuple(slots.values())
    trials = [Trial(number, counts, *master, size, limit_s, environment) for number in range(len(hosts))]
    commands = [way.command(host, "maskloom.launch.doctor.network") for host in hosts]
    requests = [TRIAL.dump_json(trial).decode() for trial in trials]
    replies = run_on_all(commands, requests, 2 * limit_s, len(hosts), GRACE_S)
    try:
        return SPEED.validate_json(last_line(replies[0].output))
    except ValueError:
        said = {host: last_line(reply.errors) for host, reply in zip(hosts, replies, strict=True) if reply.code}
        return said or dict.fromkeys(hosts, f"no end after {2 * limit_s:.0f} s")


def slow_hosts(pairs: Sequence[Pair]) -> dict[int, float]:
    """Hosts that are far slower than the others, with their best pair's bytes a second. With two hosts nobody can tell."""
    best: dict[int, float] = {}
    for one, other, speed in pairs:
        for host in (one, other):
            best[host] = max(best.get(host, 0.0), speed)
    if len(best) < 3:
        return {}
    return {host: speed for host, speed in sorted(best.items()) if speed < SLOW_SHARE * max(best.values())}


def ring_rounds(hosts: int) -> list[list[tuple[int, int]]]:
    """The pairs of neighbours on a ring of hosts, in rounds in which each host has at most one."""
    if hosts < 3:
        return [[(0, 1)]] if hosts == 2 else []
    pairs = [(host, (host + 1) % hosts) for host in range(hosts)]
    last = [pairs.pop()] if hosts % 2 else []
    return [pairs[0::2], pairs[1::2], *([last] if last else [])]


def main() -> int:
    """A host's part of the job. The first host prints what was measured."""
    trial = TRIAL.validate_json(sys.stdin.readline())
    end_with_stdin()
    os.environ |= trial.environment
    ranks = trial.slots[trial.host]
    with Pool(ranks, "torch") as pool:  # no rank is done before all have begun, so each has a process of its own
        first, *_ = list(pool.map(run_rank, repeat(trial, ranks), range(ranks)))
    if trial.host == 0:
        print(SPEED.dump_json(first).decode(), flush=True)
    return 0


def run_rank(trial: Trial, local_rank: int) -> Speed:
    """Time the job as one rank, which takes the GPU of its number."""
    import torch
    from torch import distributed

    from maskloom.distributed import World, gather_objects

    ranks, on_gpu = sum(trial.slots), torch.cuda.is_available()
    rank = sum(trial.slots[: trial.host]) + local_rank
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    torch.set_num_threads(1)
    backend = "nccl" if on_gpu else "gloo"
    where = f"tcp://{trial.master_addr}:{trial.master_port}"
    limit = timedelta(seconds=trial.limit_s)
    distributed.init_process_group(backend, init_method=where, rank=rank, world_size=ranks, timeout=limit)

    def finish() -> None:
        if on_gpu:
            torch.cuda.synchronize()

    def seconds(work: Callable[[], object], repeats: int) -> float:
        """That one of `repeats` takes, after one that does not count."""
        work()
        finish()
        distributed.barrier()
        began_s = time.perf_counter()
        for _ in range(repeats):
            work()
        finish()
        return (time.perf_counter() - began_s) / repeats

    small, large = torch.zeros(1, device=device), torch.zeros(trial.bytes // 4, device=device)
    latency_s = seconds(lambda: distributed.all_reduce(small), SMALL_REPEATS)
    bus = 2 * (ranks - 1) / ranks * trial.bytes / seconds(lambda: distributed.all_reduce(large), REPEATS)
    pairs: list[Pair] = []
    packet = torch.zeros(PAIR_BYTES // 4, device=device)
    firsts = [sum(trial.slots[:host]) for host in range(len(trial.slots))]
    for found in ring_rounds(len(firsts)):
        mine = [(one, other) for one, other in found if rank in (firsts[one], firsts[other])]

        def there_and_back(mine: Sequence[tuple[int, int]] = mine) -> None:
            for one, other in mine:
                begins = rank == firsts[one]
                partner = firsts[other if begins else one]
                for sends in (begins, not begins):
                    (distributed.send if sends else distributed.recv)(packet, partner)

        took_s = seconds(there_and_back, 1)
        pairs += [(one, other, 2 * PAIR_BYTES / took_s) for one, other in mine if rank == firsts[one]]
    gathered = gather_objects([list(pair) for pair in pairs], World(rank, ranks))
    distributed.destroy_process_group()
    ring = tuple((one, other, speed) for part in gathered for one, other, speed in part)
    return Speed(backend, ranks, trial.bytes, bus, latency_s, ring)


if __name__ == "__main__":
    run_program("maskloom.launch.doctor.network", main)
