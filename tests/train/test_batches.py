"""Steps that a thread makes ready: what is read, cut as it was before, whatever the number of readers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from maskloom.config_file import load_config
from maskloom.data.batch import micro_batches
from maskloom.data.cursors import first_cursors
from maskloom.data.index.loading import load_index
from maskloom.data.plan import DataPlan
from maskloom.data.stream import read_steps
from maskloom.distributed import World
from maskloom.tokenizers.loading import load_tokenizer
from maskloom.train.batches import ready_steps
from maskloom.train.setup import phase_layouts
from maskloom.train.tally import counts_of
from tests.conftest import plan_for
from tests.waiting import wait_until

CPU = torch.device("cpu")


@pytest.fixture
def planned(run_config: dict, write_config: Callable[[dict], Path]) -> tuple[DataPlan, list]:
    """Two phases, the batch of the first of which grows; the plan and the layouts for two ranks."""
    warmup = {"batch_warmup": {"steps": 3, "from_rows": 6}}
    phases = [{"steps": 5, "seq_len": 32, "global_batch_rows": 24, "micro_batch_rows": 5, **warmup}]
    phases += [{"steps": 2, "seq_len": 64, "global_batch_rows": 12, "micro_batch_rows": 4}]
    config = load_config(write_config({**run_config, "phases": phases}))
    plan = plan_for(config, (load_index(config.data.train),), load_tokenizer(config.tokenizer))
    return plan, phase_layouts(config.phases, plan, World(1, 2))


@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_step_is_its_rows_and_their_micro_batches_and_counts(
    planned: tuple[DataPlan, list], workers: int, in_thread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskloom.data.ahead.ON_CPUS", in_thread)
    plan, layouts = planned
    world, cursors = World(1, 2), first_cursors(plan.lanes)
    generator = torch.get_rng_state()
    steps = list(ready_steps(plan, world, layouts, CPU, cursors, 1, workers, 2))
    torch.set_rng_state(generator)
    expected = list(read_steps(plan, world, cursors, 1))
    assert [step.number for step in steps] == [step.number for step in expected] == list(range(1, 7))
    for step, plain in zip(steps, expected, strict=True):
        assert step.cursors == plain.cursors
        phase = plan.phase_of(step.number)
        layout = layouts[phase].of_smaller(plan.lanes, plan.lane_rows(step.number), world)
        batches = list(micro_batches(plain.rows, layout, plan.capacity(phase), plan.tokenizer))
        assert len(step.micro_batches) == len(batches)
        for one, other in zip(step.micro_batches, batches, strict=True):
            for name, value in vars(other).items():
                assert torch.equal(torch.as_tensor(getattr(one, name)), torch.as_tensor(value)), name
        assert torch.equal(step.counts, counts_of(plain.rows, plan.tokenizer))


@pytest.mark.parametrize("workers", [0, 2])
def test_readers_and_thread_end_with_the_iterator(
    planned: tuple[DataPlan, list], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import multiprocessing

    monkeypatch.setattr("maskloom.data.ahead.ON_CPUS", True)
    plan, layouts = planned
    before = set(threading.enumerate()), set(multiprocessing.active_children())
    with contextlib.closing(
        ready_steps(plan, World(), layouts, CPU, first_cursors(plan.lanes), 0, workers, 2)
    ) as steps:
        next(steps)
        assert "ahead" in {thread.name for thread in set(threading.enumerate()) - before[0]}
        assert len(set(multiprocessing.active_children()) - before[1]) == workers
    assert set(multiprocessing.active_children()) <= before[1]
    assert "ahead" not in {thread.name for thread in set(threading.enumerate()) - before[0]}
    # Those of the queues, and the one that would have killed the readers, were told to end.
    wait_until(lambda: set(threading.enumerate()) <= before[0], "the end of all threads")
