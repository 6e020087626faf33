r"""Lion (Chen et al., 2023, arXiv:2302.06675), an optimizer that maskloom does not bring.

    w <- w - lr * (sign(beta1 * m + (1 - beta1) * g) + weight_decay * w)
    m <- beta2 * m + (1 - beta2) * g

It keeps one moment a weight, half of AdamW's state. Its learning rate is a third to a tenth of AdamW's, its decay as much larger.
Name the module when you train; it is found in the current folder or on PYTHONPATH:

    PYTHONPATH=examples maskloom train configs/quickstart.yaml --import add_optimizer \
        run_dir=runs/lion optimizer.name=lion optimizer.lr=3e-4 optimizer.weight_decay=0.1 optimizer.beta2=0.99

The update works element by element. So it trains at every ZeRO stage, and its checkpoints load at any other.
"""

import torch

from maskloom.config import Optimizer
from maskloom.optim import add
from maskloom.optim.kind import FromDeepSpeed, Group, OptimizerKind


class Lion(torch.optim.Optimizer):
    """Lion over torch's parameter groups, each with `lr`, `betas` and `weight_decay`."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for weight in (each for each in group["params"] if each.grad is not None):
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"]
                update = torch.lerp(weight.grad, momentum, beta1).sign_()
                weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])
                momentum.lerp_(weight.grad, 1 - beta2)


def build(groups: list[Group], settings: Optimizer, deepspeed: FromDeepSpeed) -> Lion:
    """Lion with the settings of the configuration's section `optimizer`."""
    return Lion(groups, {"lr": settings.lr, "betas": (settings.beta1, settings.beta2)})


add(OptimizerKind(name="lion", title="Lion", build=build, state_bytes=4))
