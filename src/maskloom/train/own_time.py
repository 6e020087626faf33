"""Where the time of a step goes: communication, waiting for other ranks, and what is a rank's own.

What a rank does neither wait nor send is its own time; a rank whose own time is far above the others' holds them up. Time that
evaluations and saves take is no step's.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from maskloom.distributed import World, gather_objects, sum_over_ranks
from maskloom.train.stragglers import Stragglers
from maskloom.train.traffic import Totals, Traffic


class Spent(NamedTuple):
    """Since the last logged line, on this rank."""

    sent: Totals
    own_s: float
    """Seconds a step."""


class OwnTime:
    """The clock of this rank, from one logged line to the next. Every rank makes it at the same place."""

    def __init__(self, traffic: Traffic, world: World, device: torch.device) -> None:
        self.traffic, self.world, self.device = traffic, world, device
        self._waits = traffic.meter()
        self._stragglers = Stragglers(gather_objects(socket.gethostname(), world), world.is_first)
        self._paused_s = 0.0
        self.mark()

    def mark(self) -> None:
        """Begin behind a logged line."""
        self._marked_s = time.perf_counter()

    def waiting(self, call: Callable[..., Any], *args: Any) -> Any:
        """The result of a call that waits for other ranks."""
        return self._waits.timed(call, *args)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """For the block time belongs to no step."""
        began_s = time.perf_counter()
        yield
        self._paused_s += time.perf_counter() - began_s

    def take(self) -> Spent:
        """What was sent since the last logged line, and this rank's own time."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elapsed_s = time.perf_counter() - self._marked_s - self._paused_s
        self._paused_s = 0.0
        sent = self.traffic.take()
        own_s = elapsed_s - sent.seconds - self._waits.take().seconds
        return Spent(sent, max(own_s, 0.0) / max(sent.steps, 1))

    def values(self, spent: Spent) -> dict[str, float]:
        """A step's seconds of communication, the mean over ranks, bytes, which are the same on every rank, and how much the
        slowest rank holds the others up. Every rank calls it."""
        sent, steps = spent.sent, max(spent.sent.steps, 1)
        mine = torch.zeros(1 + self.world.size, dtype=torch.float64)
        mine[0], mine[1 + self.world.rank] = sent.seconds, spent.own_s
        seconds, *all_own_s = sum_over_ranks(mine.to(self.device)).tolist()
        kinds = {f"communication_bytes_{kind}": count / steps for kind, count in sorted(sent.sent_bytes.items())}
        return {
            "straggler_ratio": self._stragglers.add(all_own_s),
            "communication_s": seconds / self.world.size / steps,
            "communication_bytes": sum(kinds.values()),
            **kinds,
        }
