"""A program: what the installed DeepSpeed does without our patches, printed as JSON. It imports nothing of ours.

One rank on a CPU, with a model of two small matrices.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

found: dict[str, Any] = {}


class Two(torch.nn.Module):
    """Two matrices side by side; the gradient of the second is as large as the scale says."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = (torch.nn.Linear(8, 8, bias=False) for _ in range(2))

    def forward(self, scale: float) -> torch.Tensor:
        ones = torch.ones(1, 8, dtype=self.one.weight.dtype)
        return self.one(ones).sum() + self.two(ones).sum() * scale


def engine_of(module: torch.nn.Module, stage: int, optimizer: torch.optim.Optimizer | None = None, **more: Any) -> Any:
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage, "reduce_scatter": False},
        "zero_allow_untested_optimizer": True,
        **more,
    }
    optimizer = optimizer or torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.5)
    return deepspeed.initialize(model=module, optimizer=optimizer, config=settings, dist_init_required=False)[0]


def step(engine: Any, scale: float) -> None:
    engine.backward(engine(scale))
    engine.step()


def first_step() -> None:
    """Stage 0 in half precision."""
    module = Two()
    engine = engine_of(module, 0, bf16={"enabled": True})
    given = module.one.weight.float()
    masters = [weight for group in engine.optimizer.fp32_groups for weight in group]
    found["decayed when wrapped"] = not torch.equal(masters[0].data, given.data)
    found["steps when wrapped"] = len(engine.basic_optimizer.state)
    engine.destroy()


def reduce_alone() -> None:
    """Stage 0 in fp32."""
    engine, buckets = engine_of(Two(), 0), []
    allreduce = engine.allreduce_bucket
    engine.allreduce_bucket = lambda *args, **options: buckets.append(1) or allreduce(*args, **options)
    engine.backward(engine(1.0))
    found["buckets reduced by one rank"] = len(buckets)
    engine.destroy()


def muon() -> None:
    """Stage 3 in fp32: a step that is dropped."""
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    module = Two()
    module.one.weight.use_muon, module.two.weight.use_muon = True, False
    shared = {"lr": 0.1, "weight_decay": 0.0}
    groups = [
        {"params": [module.one.weight], "use_muon": True, "momentum": 0.9, **shared},
        {"params": [module.two.weight], "use_muon": False, "betas": (0.9, 0.9), "eps": 1e-6, **shared},
    ]
    engine = engine_of(module, 3, MuonWithAuxAdam(groups, torch.optim.AdamW, {"fused": True}))
    step(engine, 1.0)
    (momentum,) = (
        state["momentum_buffer"] for state in engine.basic_optimizer.state.values() if "momentum_buffer" in state
    )
    before = momentum.clone()
    step(engine, torch.nan)
    found["takes a step on NaN"] = bool(engine.was_step_applied())
    found["a dropped step moves the momentum"] = not torch.equal(momentum, before)
    engine.destroy()


def loss_scale() -> None:
    """Stage 1 in fp16."""
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    CPU_Accelerator.is_fp16_supported = lambda self: True  # it works all the same
    engine = engine_of(Two(), 1, fp16={"enabled": True, "initial_scale_power": 8, "hysteresis": 1})
    before = engine.optimizer.loss_scale
    step(engine, torch.nan)
    found["loss scale after NaN"] = engine.optimizer.loss_scale / before
    found["skipped after NaN"] = engine.skipped_steps
    engine.destroy()


def scripts() -> None:
    """Stage 1: what is written outside of the checkpoint engine."""
    engine, folder = engine_of(Two(), 1), tempfile.mkdtemp()
    engine.checkpoint_engine.save = lambda *args, **options: None
    engine.save_checkpoint(folder, tag="tag", save_latest=False)
    found["written without the checkpoint engine"] = sorted(file.name for file in Path(folder).rglob("*.*"))
    engine.destroy()


def leftovers() -> None:
    """Stage 3."""
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK

    module = Two()
    engine = engine_of(module, 3)
    engine.destroy()
    found["kept by the stack"] = any(each is module for each in FWD_MODULE_STACK)
    found["the destroyed engine holds"] = [
        name for name in ("module", "optimizer") if getattr(engine, name) is not None
    ]


def waits() -> None:
    """DeepSpeed's own count of what is sent."""
    from deepspeed.utils.comms_logging import CommsLogger

    accelerator, synchronised = deepspeed.accelerator.get_accelerator(), []
    type(accelerator).synchronize = lambda *_: synchronised.append(1)
    type(accelerator).device_name = lambda *_: "cuda"
    deepspeed.comm.comm.comms_logger = CommsLogger()
    deepspeed.comm.configure(enabled=True, prof_all=True)
    deepspeed.comm.all_reduce(torch.ones(1))
    found["waits of a counted collective"] = len(synchronised)


import deepspeed  # noqa: E402

probe: Any = deepspeed.ops
probe._probe_compatible_ops = lambda: found.update(probed=True) or {}
deepspeed.init_distributed("gloo", verbose=False, auto_mpi_discovery=False)
torch.compiler.set_stance("force_eager")
for look in (first_step, reduce_alone, muon, loss_scale, scripts, leftovers, waits):
    try:
        look()
    except Exception as error:
        found[look.__name__] = repr(error)
print("\n" + json.dumps(found), file=sys.stdout)
