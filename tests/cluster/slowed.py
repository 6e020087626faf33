"""maskloom.train with a second rank that is slow, however slow or busy the machine is.

python -m tests.cluster.slowed CONFIG [key=value...]
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch

TIMES = 2
"""The second rank stands still for so many times what the first took for the same steps."""
MORE_S = 0.1
"""And for so long beside, since a step of milliseconds is uneven by nature."""
MOST_S = 120.0
"""`timeouts.train_s` of the run: longer than the second rank stands still, also where the first line has the start in it."""


def slow() -> None:
    """Patch this process: where a line is logged the second rank learns the first one's own time, and takes more."""
    from maskloom.distributed import sum_over_ranks
    from maskloom.train.timing import OwnTime, Spent

    old_take = OwnTime.take

    def take(self: Any) -> Spent:
        if self.world.rank != 1:
            spent = old_take(self)
            sum_over_ranks(torch.tensor(spent.own_s * spent.sent.steps, dtype=torch.float64))
            return spent
        own_s = float(sum_over_ranks(torch.tensor(0.0, dtype=torch.float64)))
        time.sleep(TIMES * own_s + MORE_S)
        return old_take(self)

    OwnTime.take = take  # type: ignore[method-assign]


if __name__ == "__main__":
    from maskloom.program import end
    from maskloom.train.__main__ import main

    slow()
    end(main(sys.argv[1:]))
