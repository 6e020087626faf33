"""DeepSpeed's Muon, made for CPUs: `maskloom.optim.newton_schulz` computes its updates, at each ZeRO stage.

At stage 0 the optimizer holds whole matrices, and a step takes them in batches. If all ranks are on one machine, they share the
matrices out: each makes the updates of some, and hands them to the others. From stage 1 on DeepSpeed asks for the update of one
matrix at a time, and only if the rank needs it.

On a GPU DeepSpeed's own code stays.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator

from maskloom.distributed import World, gather_equal
from maskloom.optim.newton_schulz import cost_of, updates_of
from maskloom.train.engine.patches import muon_class


def muon_for(world: World) -> Callable[..., torch.optim.Optimizer]:
    """The class that is Muon on this device. On a CPU DeepSpeed takes its updates from here from then on."""
    if get_accelerator().device_name() != "cpu":
        return muon_class()
    from deepspeed.runtime.zero.muon import muon_optimizer, original_muon

    original_muon.muon_update = muon_optimizer.muon_update = update_of_one
    return functools.partial(_batched_class(), sharers=world.size if world.size == world.local_size else 1)


def update_of_one(
    grad: torch.Tensor, momentum: torch.Tensor, beta: float = 0.95, ns_method: str = "gram", **unused: object
) -> torch.Tensor:
    """What DeepSpeed's `muon_update` gives for a matrix. Gradients that are not finite leave the momentum as it is, and are the
    update: DeepSpeed then drops the step. Nothing is read from the device."""
    assert not any(unused.values()), "settings of Muon that maskloom does not have"
    is_finite, before = torch.isfinite(grad).all(), momentum.clone()
    (update,) = updates_of([grad.masked_fill(~is_finite, 0.0)], [momentum], beta, ns_method)
    momentum.copy_(torch.where(is_finite, momentum, before))
    return torch.where(is_finite, update.to(grad.dtype), grad)


@functools.cache
def _batched_class() -> Callable[..., torch.optim.Optimizer]:
    base: Any = muon_class()

    class BatchedMuon(base):  # type: ignore[misc]
        """Muon whose step at stage 0 takes equal matrices together.

        Args:
            sharers: ranks that share the matrices out.
        """

        param_groups: list[dict[str, Any]]

        def __init__(self, *args: Any, sharers: int, **settings: Any) -> None:
            super().__init__(*args, **settings)
            self._sharers = sharers

        @torch.no_grad()
        def step(self, closure: None = None, step_id: int | None = None) -> None:
            groups = self.param_groups
            whole = [group for group in groups if group["use_muon"] and _has_matrices(group["params"])]
            for group in whole:
                self._step_matrices(group)
            self.param_groups = [group for group in groups if group not in whole]  # DeepSpeed's step has the rest
            try:
                super().step(closure, step_id)
            finally:
                self.param_groups = groups

        def _step_matrices(self, group: dict[str, Any]) -> None:
            matrices = group["params"]
            for matrix in matrices:
                if matrix.grad is None:
                    matrix.grad = torch.zeros_like(matrix)
                self.state[matrix].setdefault("momentum_buffer", torch.zeros_like(matrix))
            gradients = [matrix.grad for matrix in matrices]
            momenta = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
            updates = shared_updates(gradients, momenta, group["momentum"], group["ns_method"], self._sharers)
            if group["weight_decay"]:
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(matrices, updates, alpha=-group["lr"])

    found: Callable[..., torch.optim.Optimizer] = BatchedMuon
    return found


def _has_matrices(parameters: Sequence[torch.Tensor]) -> bool:
    """Whether a group holds whole matrices. ZeRO has vectors in them, and stage 3 leaves groups empty for a while."""
    return bool(parameters) and all(each.ndim == 2 for each in parameters)


def shared_updates(
    gradients: Sequence[torch.Tensor], momenta: Sequence[torch.Tensor], momentum: float, method: str, sharers: int
) -> list[torch.Tensor]:
    """`updates_of`, shared out over all ranks if there are several sharers. Every rank gets each update."""
    if sharers == 1:
        return updates_of(gradients, momenta, momentum, method)
    shapes = [gradient.shape for gradient in gradients]
    parts = shares([cost_of(*shape) for shape in shapes], sharers)
    rank = torch.distributed.get_rank()
    updates = updates_of(gradients, momenta, momentum, method, parts[rank])
    lengths = [[shapes[number].numel() for number in part] for part in parts]
    packed = gradients[0].new_zeros(max(map(sum, lengths)), dtype=torch.float32)
    for piece, update in zip(torch.split(packed[: sum(lengths[rank])], lengths[rank]), updates, strict=True):
        piece.view_as(update).copy_(update)
    found: dict[int, torch.Tensor] = {}
    for part, sizes, row in zip(parts, lengths, gather_equal(packed, sharers), strict=True):
        pieces = torch.split(row[: sum(sizes)], sizes)
        found.update((number, piece.view(shapes[number])) for number, piece in zip(part, pieces, strict=True))
    return [found[number] for number in range(len(shapes))]


def shares(costs: Sequence[int], sharers: int) -> list[list[int]]:
    """Numbers of the items that each of the sharers has: the dearest first, each to whoever has least."""
    parts: list[list[int]] = [[] for _ in range(sharers)]
    loads = [0] * sharers
    for number in sorted(range(len(costs)), key=lambda number: -costs[number]):
        least = loads.index(min(loads))
        parts[least].append(number)
        loads[least] += costs[number]
    return parts
