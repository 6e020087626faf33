"""What maskloom knows of an optimizer: `OptimizerKind`, one row of the table `maskloom.optim.OPTIMIZERS`.

An optimizer is one file: its settings, its parameter groups, how it is built, its state, and what it does not go with. Nothing
else in maskloom knows it by name.

An update that works element by element needs `name`, `title`, `build` and `state_bytes` alone. From stage 1 on, ZeRO cuts the
parameters into flat vectors wherever it likes, and `build` gets those. A checkpoint's state moves between ZeRO stages and
numbers of ranks.

Any other update gives wrong steps on such vectors, and nothing can tell: Adafactor's sums over rows, for example. It needs
`refusal=whole_tensors_only`, or what LAMB and Muon do: LAMB takes norms through `place`, Muon gets whole matrices.

Weight decay acts on matrices and embeddings, not on biases and LayerNorm, as BERT was trained.

DeepSpeed is not imported here. What it offers for optimizers comes as an argument (`FromDeepSpeed`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from maskloom.config import Optimizer, OptimizerSection

Group = dict[str, Any]
"""One of torch's parameter groups: `params`, and the hyperparameters that they share."""


@dataclass(frozen=True)
class FromDeepSpeed:
    """What DeepSpeed offers for optimizers on this machine.

    Attributes:
        fused_adam: DeepSpeed's class FusedAdam; None if a rank cannot have it.
        why_no_fused_adam: the reason for None, in a few words; empty on machines without a GPU.
        muon_class: gives DeepSpeed's class MuonWithAuxAdam, whose import takes seconds.
    """

    fused_adam: Callable[..., torch.optim.Optimizer] | None = None
    why_no_fused_adam: str = ""
    muon_class: Callable[[], Callable[..., torch.optim.Optimizer]] | None = None


class Spread(NamedTuple):
    """How a run spreads its state and computes.

    Attributes:
        zero_stage: 0 to 3.
        precision: fp32, bf16 or fp16.
        accumulates: whether a step has several micro-batches.
    """

    zero_stage: int
    precision: str
    accumulates: bool


class TensorPart(NamedTuple):
    """A part of one of a group's tensors inside a flat vector.

    Attributes:
        tensor: number of the tensor in its group, the same on every rank.
        start: where its elements begin in the vector.
        length: elements.
    """

    tensor: int
    start: int
    length: int


class Placing(NamedTuple):
    """What a flat vector holds of its group's `tensors` tensors; the ranks' vectors together hold each once."""

    tensors: int
    parts: tuple[TensorPart, ...]


def decayed_and_plain(model: nn.Module, settings: Optimizer) -> list[Group]:
    """The parameters of a model in two groups, in the model's order: those with weight decay, those without."""
    parameters = list(model.parameters())
    return [
        {"params": [each for each in parameters if each.ndim >= 2], "weight_decay": settings.weight_decay, "rate": 1.0},
        {"params": [each for each in parameters if each.ndim < 2], "weight_decay": 0.0, "rate": 1.0},
    ]


def betas(settings: Optimizer) -> tuple[float, float]:
    """How fast the first and the second moment forget."""
    return settings.beta1, settings.beta2


Build = Callable[[list[Group], Optimizer, FromDeepSpeed], torch.optim.Optimizer]
Title = Callable[[torch.optim.Optimizer, FromDeepSpeed], str]


def _go_with_all(spread: Spread) -> str | None:
    return None


def whole_tensors_only(spread: Spread) -> str | None:
    """A `refusal` for an update that needs each tensor in its own shape, as it is at stage 0 alone."""
    if spread.zero_stage == 0:
        return None
    return (
        f"engine.zero_stage {spread.zero_stage} cuts the parameters into flat vectors, and this optimizer needs whole "
        "tensors: set engine.zero_stage=0, or another optimizer.name"
    )


def _tell_nothing(zero_stage: int) -> dict[str, object]:
    return {}


def _leave(optimizer: torch.optim.Optimizer) -> None:
    """The state is as it should be."""


@dataclass(frozen=True)
class OptimizerKind:
    """All that is known of one optimizer.

    Attributes:
        name: in `optimizer.name`.
        build: (groups, the section `optimizer` of the configuration, what DeepSpeed offers) -> the optimizer. Its own
            settings are in the section's field of its name, which is None if the configuration has none of them.
        state_bytes: bytes of state for each fp32 weight, most of them: 8 for two moments.
        title: what it is, in words, for the log; a function if it has several implementations.
        section: settings of its own, under its name in the section `optimizer`. They also say which of the others do not go
            with it.
        groups: the parameters of a model in torch's groups, each in one. `weight_decay` and `rate` stand in every group: the
            learning rate is that of the schedule times `rate`.
        takes_fused_adam: `build` wants DeepSpeed's FusedAdam. It is compiled before, if need be.
        can_offload: DeepSpeed may keep its state in the host's memory (`offload_optimizer`).
        norms_whole_tensors: a step takes norms of whole tensors. The optimizer then has a method `place`, which gets a dict:
            flat vector among its parameters -> `Placing`.
        updates_before_norm: under ZeRO DeepSpeed makes updates out of the gradients before it takes their norm. Clipping by
            that norm is then wrong, and DeepSpeed is told to look for gradients that are not finite before.
        whole_state: names of state tensors that ZeRO 1 and 2 keep of whole parameters, although the weights are cut.
        refusal: why it does not go with a way to spread, and what to set; None if it does. `whole_tensors_only` is one.
        zero_settings: what DeepSpeed's `zero_optimization` has to say at a ZeRO stage.
        settle: called with the optimizer after a checkpoint was loaded. The state may come from another build of it.
    """

    name: str
    build: Build
    state_bytes: int
    title: str | Title
    section: type[OptimizerSection] | None = None
    groups: Callable[[nn.Module, Optimizer], list[Group]] = decayed_and_plain
    takes_fused_adam: bool = False
    can_offload: bool = False
    norms_whole_tensors: bool = False
    updates_before_norm: bool = False
    whole_state: frozenset[str] = frozenset()
    refusal: Callable[[Spread], str | None] = _go_with_all
    zero_settings: Callable[[int], dict[str, Any]] = _tell_nothing
    settle: Callable[[torch.optim.Optimizer], None] = _leave

    def titled(self, optimizer: torch.optim.Optimizer, deepspeed: FromDeepSpeed) -> str:
        """What an optimizer of this kind is, in words."""
        return self.title if isinstance(self.title, str) else self.title(optimizer, deepspeed)
