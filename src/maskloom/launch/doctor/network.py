"""How fast the hosts sum: a small job of the run's real ranks, over its real backend.

    python -m maskloom.launch.doctor.network     on every host; starts the host's ranks, which time an all-reduce together

An all-reduce is as slow as its slowest host, so that it cannot say which one that is. After it the hosts send to each other two
by two, along a ring: a host both of whose pairs are slow is the slow one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any

from maskloom.launch.doctor.asking import Way, send
from maskloom.launch.ssh import last_line
from maskloom.program import run_program

PAIR_BYTES = 16 << 20
REPEATS = 3
SMALL_REPEATS = 20
GRACE_S = 5.0
POLL_S = 0.1
SLOW_SHARE = 1 / 3
"""A host whose best pair has less than this share of the best pair of all is far slower than the others."""


@dataclass(frozen=True)
class Job:
    """What a host, and then each of its ranks, is told.

    Attributes:
        first_rank, ranks: of this host.
        host_of: number of the host of every rank.
        limit_s: until ranks give up.
    """

    host: int
    first_rank: int
    ranks: int
    host_of: tuple[int, ...]
    master_addr: str
    master_port: int
    bytes: int
    limit_s: float
    environment: dict[str, str] = field(default_factory=dict)
    local_rank: int | None = None


@dataclass(frozen=True)
class Speed:
    """What the job measured.

    Attributes:
        bytes: that each rank summed.
        bytes_per_s: bus bandwidth, as nccl-tests have it: 2 (n - 1) / n of the bytes over the time.
        latency_s: of an all-reduce of four bytes.
        pairs: (host, host, bytes a second) along the ring of hosts; empty for one host.
    """

    backend: str
    ranks: int
    bytes: int
    bytes_per_s: float
    latency_s: float
    pairs: tuple[tuple[int, int, float], ...] = ()


def measure(
    hosts: Sequence[str],
    slots: Sequence[int],
    way: Way,
    master: tuple[str, int],
    size: int,
    limit_s: float,
    environment: dict[str, str],
) -> Speed | dict[str, str]:
    """Run the job. Returns what it measured, or what each host said whose ranks failed.

    Args:
        master: address and port of the first rank.
        size: bytes to sum.
    """
    host_of = tuple(number for number, count in enumerate(slots) for _ in range(count))
    processes = [way.start(host, "maskloom.launch.doctor.network") for host in hosts]
    outputs: list[tuple[str, str]] = [("", "")] * len(hosts)

    def follow(number: int) -> None:
        process = processes[number]
        assert process.stdout and process.stderr
        errors: list[str] = []
        reader = threading.Thread(target=lambda: errors.append(process.stderr.read() if process.stderr else ""))
        reader.start()
        output = process.stdout.read()
        reader.join()
        outputs[number] = (output, "".join(errors))

    followers = [threading.Thread(target=follow, args=(number,)) for number in range(len(hosts))]
    for number, process in enumerate(processes):
        first = sum(slots[:number])
        job = Job(number, first, slots[number], host_of, *master, size, limit_s, environment)
        send(process, json.dumps(asdict(job)))
    for follower in followers:
        follower.start()
    late = wait_for_all(processes, 2 * limit_s)
    for follower in followers:
        follower.join(10)
    try:
        values = json.loads(last_line(outputs[0][0]))
        return Speed(**{**values, "pairs": tuple(tuple(pair) for pair in values["pairs"])})
    except (ValueError, TypeError, KeyError):
        pass
    said = {
        hosts[number]: last_line(outputs[number][1])
        for number, process in enumerate(processes)
        if number not in late and process.returncode
    }
    return said or dict.fromkeys(hosts, f"no end after {2 * limit_s:.0f} s")


def wait_for_all(processes: Sequence[subprocess.Popen[str]], limit_s: float) -> list[int]:
    """Wait until all have ended. Where one fails the others have GRACE_S, for they may wait for it; then, and at the limit, the
    rest is killed. Returns the numbers of those."""
    until_s = time.monotonic() + limit_s
    has_failed = False
    while (running := [number for number, process in enumerate(processes) if process.poll() is None]) and (
        time.monotonic() < until_s
    ):
        if not has_failed and any(process.returncode for process in processes):
            has_failed, until_s = True, min(until_s, time.monotonic() + GRACE_S)
        time.sleep(POLL_S)
    for number in running:
        processes[number].kill()
        processes[number].wait()
    return running


def slow_hosts(pairs: Sequence[tuple[int, int, float]]) -> dict[int, float]:
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
    """A host's part of the job, or with a `local_rank` one rank of it. Returns the exit code."""
    job = Job(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    if job.local_rank is None:
        return run_host(job)
    os.environ |= job.environment
    speed = run_rank(job)
    if speed:
        print(json.dumps(asdict(speed)), flush=True)
    return 0


def run_host(job: Job) -> int:
    """Start this host's ranks and wait for them; the first rank's line goes to our stdout."""
    command = [sys.executable, "-m", "maskloom.launch.doctor.network"]
    ranks = []
    for local_rank in range(job.ranks):
        ranks.append(subprocess.Popen(command, stdin=subprocess.PIPE, text=True))
        send(ranks[-1], json.dumps({**asdict(job), "local_rank": local_rank}))
    return max(abs(rank.wait()) for rank in ranks)


def run_rank(job: Job) -> Speed | None:
    """Time the job as one rank. Returns what was measured on the first."""
    import torch
    from torch import distributed

    from maskloom.distributed import World, gather_objects

    assert job.local_rank is not None
    rank, ranks = job.first_rank + job.local_rank, len(job.host_of)
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", job.local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    torch.set_num_threads(1)
    distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=f"tcp://{job.master_addr}:{job.master_port}",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=job.limit_s),
    )

    def finish() -> None:
        if on_gpu:
            torch.cuda.synchronize()

    def timed(work: Any, repeats: int) -> float:
        """Seconds that one of `repeats` takes, after one that does not count."""
        work()
        finish()
        distributed.barrier()
        began_s = time.perf_counter()
        for _ in range(repeats):
            work()
        finish()
        return (time.perf_counter() - began_s) / repeats

    large = torch.zeros(job.bytes // 4, device=device)
    small = torch.zeros(1, device=device)
    latency_s = timed(lambda: distributed.all_reduce(small), SMALL_REPEATS)
    seconds = timed(lambda: distributed.all_reduce(large), REPEATS)
    firsts = [job.host_of.index(host) for host in range(job.host_of[-1] + 1)]
    mine = measure_pairs(rank, firsts, torch.zeros(PAIR_BYTES // 4, device=device), finish)
    gathered = gather_objects([list(pair) for pair in mine], World(rank, ranks))
    distributed.destroy_process_group()
    if rank:
        return None
    pairs = tuple((one, other, speed) for part in gathered for one, other, speed in part)
    bus = 2 * (ranks - 1) / ranks * job.bytes / seconds
    return Speed("nccl" if on_gpu else "gloo", ranks, job.bytes, bus, latency_s, pairs)


def measure_pairs(rank: int, firsts: Sequence[int], tensor: Any, finish: Any) -> list[tuple[int, int, float]]:
    """Send there and back between the first ranks of neighbouring hosts. Returns the pairs that this rank begins."""
    from torch import distributed

    found = []
    for pairs in ring_rounds(len(firsts)):
        for one, other in pairs:
            if rank not in (firsts[one], firsts[other]):
                continue
            begins, partner = rank == firsts[one], firsts[other] if rank == firsts[one] else firsts[one]
            for counts in (False, True):  # the first opens the connection
                began_s = time.perf_counter()
                for sends in (begins, not begins):
                    (distributed.send if sends else distributed.recv)(tensor, partner)
                finish()
                if counts and begins:
                    seconds = time.perf_counter() - began_s
                    found.append((one, other, 2 * tensor.numel() * 4 / seconds))
        distributed.barrier()
    return found


def _end_with_stdin() -> None:
    """End this process when whoever started it is gone: its end of the pipe closes."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    run_program("maskloom.launch.doctor.network", main)
