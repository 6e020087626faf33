"""Ranks that hold the others up: whose own time a step, without waiting for others, is far above the median's."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from maskloom.progress import warn

SLOW = 1.5
"""Times the median, from which on a rank is slow."""
LEAST_S = 0.01
"""And so many seconds a step above it: a step of milliseconds is uneven by nature."""
LINES = 3
"""Logged lines in a row."""


class Stragglers:
    """Looks at every logged line; warns once when a rank has been slow for several lines in a row.

    Args:
        hosts: of the ranks, in their order.
        speaks: whether it is this process that warns.
    """

    def __init__(self, hosts: Sequence[str], speaks: bool) -> None:
        self.hosts, self.speaks = hosts, speaks
        self._slow_lines = [0] * len(hosts)

    def add(self, own_s: Sequence[float]) -> float:
        """Take each rank's own seconds a step; returns the largest as a multiple of the median (of two, the faster one)."""
        median_s = statistics.median_low(own_s)
        for rank, seconds in enumerate(own_s):
            is_slow = seconds > SLOW * median_s and seconds > median_s + LEAST_S
            self._slow_lines[rank] = self._slow_lines[rank] + 1 if is_slow else 0
            if self.speaks and self._slow_lines[rank] == LINES:
                warn(
                    f"rank {rank} on {self.hosts[rank]} is slow: {seconds:.3g} s a step of its own, where half the ranks take "
                    f"{median_s:.3g} s or less; all wait for it"
                )
        return max(own_s) / median_s if median_s else 1.0
