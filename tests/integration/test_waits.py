"""What of a training step would wait for a GPU: every place that reads a value of a tensor, or copies numbers to the device
from ordinary memory, is in `waits.json`, with the reason.

Two ranks train on CPUs, where such places cost nothing, and every tensor is taken for one of the device. What a CPU cannot
show: DeepSpeed's waits for streams and events of its own, numbers that it makes tensors of with `FloatTensor`, and where the
GPU's kernels of torch wait within.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
import yaml
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .conftest import train_in_ranks

LIST = Path(__file__).parent / "waits.json"
RANKS, ROWS = 2, 12
FIRST, LAST = 2, 4
"""Recorded from the beginning of the one step to that of the other; what a first step does once is over then."""

VALUES_READ = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_dim"}
"""Operators that give the host a value, or a tensor of a size that depends on values; also an index of booleans."""
TAKEN_TO_HOST = {"tolist", "numpy", "cpu", "__array__"}
"""Methods that copy to the host. On a CPU there is no operator behind them."""
MADE_OF_NUMBERS = {"tensor", "as_tensor"}
"""Functions that copy Python's numbers to a device, if they are given one: not from pinned memory, which waits for the GPU."""


def cases() -> dict[str, dict[str, Any]]:
    """Name -> what differs: precision and stage, the other optimizers, and collectives beside the backward as on GPUs."""
    found = {}
    for stage in range(4):
        for precision in ("fp32", "bf16", "fp16"):
            if stage or precision != "fp16":  # refused: DeepSpeed does not scale its loss
                found[f"zero {stage}, {precision}"] = {"engine": {"zero_stage": stage, "precision": precision}}
        engine = {"zero_stage": stage, "precision": "fp32"}
        for name, more in {"lamb": {}, "muon": {"gradient_clipping": 0}}.items():
            optimizer = {"name": name, "lr": 1e-3, "warmup_steps": 2, **more}
            found[f"zero {stage}, fp32, {name}"] = {"engine": engine, "optimizer": optimizer}
        if stage:
            found[f"zero {stage}, fp32, overlap"] = {"engine": {**engine, "overlap": True}}
    return found


class Operators(TorchDispatchMode):
    """Counts the operators that read values, by where they were called from."""

    def __init__(self, found: Counter[tuple[str, str]]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(part is not None and part.dtype == torch.bool for part in args[1])
        if name in VALUES_READ or by_mask:
            self.found[place(), name] += 1
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    """Counts what no operator shows on a CPU."""

    def __init__(self, found: Counter[tuple[str, str]]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        copies = name in MADE_OF_NUMBERS and kwargs.get("device") is not None
        moves = name == "to" and any(isinstance(part, str | torch.device) for part in (*args[1:], *kwargs.values()))
        if name in TAKEN_TO_HOST or copies or (moves and not kwargs.get("non_blocking") and is_ours(place())):
            self.found[place(), name] += 1
        return func(*args, **kwargs)


def place() -> str:
    """File and function of maskloom or DeepSpeed that is at work."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        for package in ("maskloom", "deepspeed"):
            if package in file.parts and "tests" not in file.parts:
                parts = file.parts[len(file.parts) - file.parts[::-1].index(package) - 1 :]
                return f"{'/'.join(parts)}: {frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


def is_ours(where: str) -> bool:
    return where.startswith("maskloom/")


def record(folder: str) -> None:
    """Patch this process: rank 0 writes what the steps FIRST to LAST of every run read, a step, to a file of the run's name."""
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    from maskloom.train import loop

    found: Counter[tuple[str, str]] = Counter()
    modes = (Operators(found), Functions(found))
    old_step = loop.train_step

    def synchronize(self: Any, device_index: Any = None) -> None:
        found[place(), "synchronize"] += 1

    def train_step(batch: Any, trainer: Any, engine: Any) -> Any:
        # The embedding's sparse gradient, which only CPUs have: what reads its indices is no wait of a GPU.
        engine.model.bert.embeddings.word_embeddings.sparse = False
        if batch.number == FIRST:
            found.clear()
            for mode in modes:
                mode.__enter__()
        if batch.number == LAST:
            for mode in reversed(modes):
                mode.__exit__(None, None, None)
            lines = [[where, name, count / (LAST - FIRST)] for (where, name), count in sorted(found.items())]
            if trainer.world.is_first:
                (Path(folder) / f"{trainer.run.name}.json").write_text(json.dumps(lines))
        return old_step(batch, trainer, engine)

    CPU_Accelerator.synchronize = synchronize
    loop.train_step = train_step


Found = dict[str, dict[tuple[str, str], float]]


@pytest.fixture(scope="module")
def found(corpus_dir: Path, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What every case reads a step: (file and function, operator) -> times."""
    folder = tmp_path_factory.mktemp("waits")
    configs = []
    for name, changed in cases().items():
        # Stage 0 in bf16 takes one micro-batch a step.
        each = ROWS // RANKS // (1 if "zero 0, bf16" in name else 3)
        tree = {
            "run_dir": str(folder / name),
            "tokenizer": str(tokenizer_dir),
            "data": {"train": str(corpus_dir), "lanes": 6, "workers": 0},
            "model": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
            "optimizer": {"lr": 1e-3, "warmup_steps": 2},
            "phases": [{"steps": LAST + 1, "seq_len": 32, "global_batch_rows": ROWS, "micro_batch_rows": each}],
            "evaluation": {"every_steps": 0},
            "checkpoint": {"every_steps": 0},
            "logging": {"every_steps": 1000},
            **changed,
        }
        configs.append(folder / f"{name}.yaml")
        configs[-1].write_text(yaml.safe_dump(tree))
    train_in_ranks(configs, RANKS, folder / "log", fake_fp16=True, patch=partial(record, str(folder)))
    return {
        name: {(where, operator): times for where, operator, times in json.loads((folder / f"{name}.json").read_text())}
        for name in cases()
    }


def listed() -> list[dict[str, Any]]:
    """The entries of `waits.json`: `where` (file and function), `reads` (the operator), `why`, and how often `a_step` by case:
    of the patterns (`fnmatch`) the first that fits counts."""
    return json.loads(LIST.read_text())


def pattern_of(case: str, entry: dict[str, Any]) -> str | None:
    return next((pattern for pattern in entry["a_step"] if fnmatch(case, pattern)), None)


@pytest.mark.parametrize("case", cases())
def test_a_step_reads_what_the_list_says(case: str, found: Found) -> None:
    expected = {
        (entry["where"], entry["reads"]): entry["a_step"][pattern]
        for entry in listed()
        if (pattern := pattern_of(case, entry)) is not None
    }
    assert found[case] == expected


def test_the_list_says_why_and_names_every_place_once() -> None:
    entries = listed()
    places = [(entry["where"], entry["reads"]) for entry in entries]
    assert len(set(places)) == len(places)
    for entry in entries:
        assert len(entry["why"]) > 20
        assert entry["a_step"].keys() == {pattern_of(case, entry) for case in cases()} - {None}, (
            "a pattern fits no case"
        )


def test_of_ours_a_step_waits_for_the_loss_alone_from_stage_1_on() -> None:
    ours = {entry["where"]: entry["a_step"] for entry in listed() if is_ours(entry["where"])}
    assert ours.pop("maskloom/data/batch.py: read") == {"*": 1}
    assert ours.pop("maskloom/train/rank/notices.py: read") == {"*": 1}, "read a step after it was copied"
    assert all(pattern.startswith("zero 0,") for patterns in ours.values() for pattern in patterns)


@pytest.mark.parametrize(
    ("reads", "name"),
    [
        (lambda values: bool(values[0] > 0), "_local_scalar_dense"),
        (lambda values: float(values.sum()), "_local_scalar_dense"),
        (lambda values: values.max().item(), "_local_scalar_dense"),
        (lambda values: range(values.long()[1]), "_local_scalar_dense"),
        (lambda values: values[values > 0], "index"),
        (lambda values: values.nonzero(), "nonzero"),
        (lambda values: torch.masked_select(values, values > 0), "masked_select"),
        (lambda values: values.unique(), "_unique2"),
        (lambda values: torch.equal(values, values + 1), "equal"),
        (lambda values: values.tolist(), "tolist"),
        (lambda values: values.numpy(), "numpy"),
        (lambda values: values.cpu(), "cpu"),
        (lambda values: values + torch.tensor(1.0, device=values.device), "tensor"),
    ],
)
def test_the_recorder_sees_what_reads_a_value(reads: Callable[[torch.Tensor], Any], name: str) -> None:
    found: Counter[tuple[str, str]] = Counter()
    values = torch.arange(3.0)
    with Operators(found), Functions(found):
        torch.where(values <= 1.0, values, torch.nan).clamp(min=1).sum()  # no wait
        assert not found
        reads(values)
    assert {operator: times for (_, operator), times in found.items()} == {name: 1}
