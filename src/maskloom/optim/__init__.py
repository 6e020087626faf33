"""Optimizers, each in a file of its own, and the learning rate (`schedule`).

    kind      what an optimizer is to the rest of maskloom: one row of the table below; which parameters decay
    adamw, lamb, muon

One of your own is a module that calls `add`, named on the command line: `maskloom train CONFIG --import MODULE`.
"""

from __future__ import annotations

from maskloom.config import add_optimizer
from maskloom.optim.adamw import ADAMW
from maskloom.optim.kind import OptimizerKind
from maskloom.optim.lamb import LAMB
from maskloom.optim.muon import MUON

OPTIMIZERS: dict[str, OptimizerKind] = {kind.name: kind for kind in (ADAMW, LAMB, MUON)}
"""`optimizer.name` -> all that is known of that optimizer."""


def add(kind: OptimizerKind) -> None:
    """Add a row: configurations can name it from then on.

    Raises:
        ValueError: the name is taken, or cannot be the name of a setting.
    """
    add_optimizer(kind.name, kind.section)
    OPTIMIZERS[kind.name] = kind
