"""Every place at which we change what DeepSpeed does, or use what it does not offer: each with the version and the reason.

All of it was found with DeepSpeed 0.19.8, the version that pyproject.toml asks for. `tests/train/engine/test_patches.py`
shows of each what the installed DeepSpeed does without it: when a test there fails, the patch is no longer needed.

What we do beside DeepSpeed, without changing it, stands where it is used. `files` loads without running code, `ops` sees what a
killed build left, `reshape` reads checkpoints of another layout.
"""

from __future__ import annotations

import contextlib
import copyreg
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import nn


class DeepSpeedEngine(Protocol):
    """What we use of DeepSpeed's engine."""

    module: nn.Module
    optimizer: Any
    """DeepSpeed's wrapper of the optimizer: another class for each ZeRO stage and precision."""
    basic_optimizer: torch.optim.Optimizer
    param_names: dict[torch.Tensor, str]
    world_size: int
    skipped_steps: int
    checkpoint_engine: Any
    enable_backward_allreduce: bool

    def __call__(self, *inputs: Any) -> Any: ...
    def train(self) -> Any: ...
    def eval(self) -> Any: ...
    def backward(self, loss: torch.Tensor, *, scale_wrt_gas: bool) -> Any: ...
    def step(self) -> None: ...
    def zero_grad(self) -> None: ...
    def destroy(self) -> None: ...
    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None: ...
    def coalesce_grad_reduction(self) -> contextlib.AbstractContextManager[Any]: ...
    def was_step_applied(self) -> bool: ...
    def get_global_grad_norm(self) -> torch.Tensor | float | None: ...
    def zero_optimization_stage(self) -> int: ...
    def fp16_enabled(self) -> bool: ...
    def bfloat16_enabled(self) -> bool: ...
    def save_checkpoint(self, folder: str, *, tag: str, save_latest: bool) -> Any: ...
    def load_checkpoint(self, folder: str, *, tag: str) -> tuple[str | None, Any]: ...


def import_quietly() -> None:
    """Import DeepSpeed. Otherwise it warns, on every machine without a GPU, that there is none."""
    logging.disable(logging.WARNING)
    from deepspeed.accelerator import get_accelerator

    get_accelerator()
    logging.disable(logging.NOTSET)


def pickle_stages_as_numbers() -> None:
    """Have the ZeRO stage in a checkpoint pickled by its number.

    DeepSpeed saves a member of an enumeration. Python 3.11 up to 3.11.3 pickles it as a call of `getattr`, which no
    allow-list for loading may hold.
    """
    from deepspeed.runtime.zero.config import ZeroStageEnum

    copyreg.pickle(ZeroStageEnum, lambda stage: (ZeroStageEnum, (stage.value,)))


def declare_operators_absent() -> None:
    """Tell DeepSpeed that no compiled operator can be had for its communication.

    Otherwise it builds a shared-memory collective at the first start, for minutes; nothing here uses it. To fill the table
    itself, it compiles programs to find out what is there, and sends this process' stderr to nowhere meanwhile: our messages
    would be lost.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__ = {}


def communication() -> Any:
    """The object through whose methods all of DeepSpeed's collectives go: `Traffic` wraps them.

    DeepSpeed's own `comms_logger` waits for the device after every call.
    """
    from deepspeed import comm

    return comm.comm.cdb


def muon_class() -> Callable[..., torch.optim.Optimizer]:
    """DeepSpeed's Muon for client code: DeepSpeed builds it only from its own configuration, without our groups."""
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    found: Callable[..., torch.optim.Optimizer] = MuonWithAuxAdam
    return found


def undo_first_step(engine: DeepSpeedEngine) -> None:
    """Undo the step that DeepSpeed's wrappers of stage 0 in half precision take when they are made.

    They step without gradients, to have the optimizer's state: it decays the weights and counts as a step.
    """
    if engine.zero_optimization_stage() == 0 and engine.optimizer is not engine.basic_optimizer:
        engine.optimizer.refresh_fp32_params()
        engine.basic_optimizer.state.clear()


def reduce_nothing_alone(engine: DeepSpeedEngine) -> None:
    """At stage 0 one rank has nothing to reduce. DeepSpeed would copy all gradients to a buffer and back: a fifth of a step."""
    if engine.zero_optimization_stage() == 0 and engine.world_size == 1:
        engine.enable_backward_allreduce = False


def look_for_overflow_first(engine: DeepSpeedEngine) -> None:
    """At stage 3 look for gradients that are not finite before updates are made of them, in every precision.

    With Muon, DeepSpeed does so in fp16 only. In fp32 and bf16 it looks after the momentum has taken the gradients up: a step
    that is dropped then leaves its trace there.
    """
    if engine.zero_optimization_stage() == 3:
        wrapper = engine.optimizer
        wrapper._overflow_check_and_loss_scale_update = functools.partial(_check_overflow, wrapper)


def _check_overflow(wrapper: Any, update_scale: bool = True) -> bool:
    """ZeRO-3's method of that name, as we want it. Its step calls it with `update_scale` False."""
    assert not update_scale
    wrapper.check_overflow()
    return bool(wrapper.overflow)


@contextlib.contextmanager
def loss_scale_kept(engine: DeepSpeedEngine) -> Iterator[None]:
    """Within it, a step that is dropped counts neither for fp16's loss scale nor among the steps that it skipped.

    DeepSpeed takes every gradient that is not finite for a loss scale that is too high.
    """
    skipped_steps, fields = engine.skipped_steps, {}
    if adapts_loss_scale(engine):
        fields = vars(engine.optimizer.loss_scaler)
    before = dict(fields)
    if before:
        fields["raise_error_at_min_scale"] = False
    yield
    fields.update(before)
    engine.skipped_steps = skipped_steps


def set_clipping(engine: DeepSpeedEngine, largest: float) -> None:
    """Clip by this norm from here on; 0 does not clip.

    DeepSpeed knows one norm for the whole run, and a checkpoint brings its own. Its wrappers hold it as `clip_grad`. Without one,
    at stage 0 in fp32, the engine reads its configuration in each step.
    """
    engine._config.gradient_clipping = largest  # type: ignore[attr-defined]
    if engine.optimizer is not engine.basic_optimizer:
        engine.optimizer.clip_grad = largest


def adapts_loss_scale(engine: DeepSpeedEngine) -> bool:
    """Whether DeepSpeed looks for the highest loss scale; it says so nowhere but in its scaler."""
    return bool(getattr(getattr(engine.optimizer, "loss_scaler", None), "dynamic", False))


def save_with(engine: DeepSpeedEngine, checkpoint_engine: Any) -> None:
    """Have DeepSpeed save through another checkpoint engine than those it can be configured with, and copy no script.

    The script turns a checkpoint into weights, which is the task of `maskloom export`. One rank would write it, outside of the
    checkpoint engine: if that fails, the others wait for ever.
    """
    if engine.checkpoint_engine is not checkpoint_engine:
        engine.checkpoint_engine = checkpoint_engine
        engine._copy_recovery_script = lambda folder: None  # type: ignore[attr-defined]


def is_cut(parameter: torch.Tensor) -> bool:
    """Whether ZeRO-3 holds a parameter in parts: it then has no elements of its own outside of its layer's call."""
    from deepspeed.runtime.zero.partition_parameters import is_zero_param

    return bool(is_zero_param(parameter))


def release(engine: DeepSpeedEngine) -> None:
    """Give back the memory of an engine. Nobody may look into it afterwards.

    DeepSpeed's `destroy` leaves three things that hold the model. ZeRO-3 puts every model that it wraps on a stack, and never
    takes it off. Its hooks lie in cycles through autograd, in which Python's collector cannot see. The parts of the engine
    refer to each other.
    """
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK

    module = engine.module
    engine.destroy()
    FWD_MODULE_STACK[:] = [other for other in FWD_MODULE_STACK if other is not module]
    for parameter in module.parameters():
        parameter.grad = None
        vars(parameter).clear()
        parameter.data = torch.empty(0, device=parameter.device, dtype=parameter.dtype)
    for part in {engine.basic_optimizer, engine.optimizer, engine}:
        vars(part).clear()


@functools.cache
def known_keys() -> frozenset[str]:
    """The keys that DeepSpeed reads at the top of its configuration. It ignores all others without a word.

    DeepSpeed has no list of them: so it reads an almost empty configuration, and we note what it asks for.
    """
    from deepspeed.runtime.config import _REMOVED_TOP_LEVEL_CONFIG_KEYS, DeepSpeedConfig

    settings = _Asked({"train_micro_batch_size_per_gpu": 1})
    DeepSpeedConfig(settings)
    return frozenset(settings.asked - _REMOVED_TOP_LEVEL_CONFIG_KEYS.keys())


class _Asked(dict[str, Any]):
    """Settings that remember which keys were asked for."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self.asked: set[str] = set()

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def keys(self) -> Any:
        return self  # DeepSpeed looks whether a key is among them

    def __copy__(self) -> _Asked:
        return self  # DeepSpeed reads a copy
