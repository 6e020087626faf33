"""Optimizers, each in a file of its own, and the learning rate (`schedule`).

    kind      what an optimizer is to the rest of maskloom: one row of the table below; which parameters decay
    adamw, lamb, muon, stable_adamw
    whole_tensors, newton_schulz    what LAMB and StableAdamW share; Muon's updates on a CPU

One of your own is a module that calls `add`, named on the command line: `maskloom train CONFIG --import MODULE`.
"""

from __future__ import annotations

from collections import Counter

from torch import nn

from maskloom.config import Optimizer, add_optimizer
from maskloom.errors import UserError
from maskloom.optim.adamw import ADAMW
from maskloom.optim.kind import Group, OptimizerKind
from maskloom.optim.lamb import LAMB
from maskloom.optim.muon import MUON
from maskloom.optim.stable_adamw import STABLE_ADAMW

OPTIMIZERS: dict[str, OptimizerKind] = {kind.name: kind for kind in (ADAMW, LAMB, MUON, STABLE_ADAMW)}
"""`optimizer.name` -> all that is known of that optimizer."""


def add(kind: OptimizerKind) -> None:
    """Add a row: configurations can name it from then on.

    Raises:
        ValueError: the name is taken, or cannot be the name of a setting.
    """
    add_optimizer(kind.name, kind.section)
    OPTIMIZERS[kind.name] = kind


def parameter_groups(model: nn.Module, settings: Optimizer) -> list[Group]:
    """The groups of a model's parameters as the optimizer of these settings takes them, without frozen ones.

    Raises:
        UserError: an added optimizer's groups lack what has to be in every group, or do not hold each parameter once.
    """
    groups = OPTIMIZERS[settings.name].groups(model, settings)
    for group in groups:
        group["params"] = [parameter for parameter in group["params"] if parameter.requires_grad]
    groups = [group for group in groups if group["params"]]
    if any(not {"params", "weight_decay", "rate"} <= group.keys() for group in groups):
        raise UserError(f"optimizer {settings.name}: each of its groups needs params, weight_decay and rate")
    times = Counter(id(parameter) for group in groups for parameter in group["params"])
    wrong = [name for name, parameter in model.named_parameters() if times[id(parameter)] != parameter.requires_grad]
    if wrong:  # one in no group would keep its first values
        raise UserError(
            f"optimizer {settings.name}: its groups have to hold each parameter once, and {wrong[0]} is "
            f"{times[id(model.get_parameter(wrong[0]))]} times in them ({len(wrong)} such parameters)"
        )
    return groups
