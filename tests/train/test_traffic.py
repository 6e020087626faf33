"""The meter of collectives: bytes of each kind, seconds, and nothing that the collectives would notice."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from maskloom.train import traffic as module
from maskloom.train.traffic import MESSAGES, Traffic


class Handle:
    def __init__(self) -> None:
        self.waited = 0

    def wait(self) -> str:
        self.waited += 1
        return "done"

    def is_completed(self) -> bool:
        return self.waited > 0


class Backend:
    """Takes what `TorchBackend` takes, and returns what it was given."""

    def __init__(self) -> None:
        self.handle = Handle()

    def all_reduce(self, tensor: Any, op: Any = None, group: Any = None, async_op: bool = False) -> Any:
        return self.handle if async_op else ("reduced", tensor, op, group)

    def reduce_scatter_tensor(self, output_tensor: Any, input_tensor: Any, op: Any = None) -> Any:
        return output_tensor

    def all_gather(self, tensor_list: Any, tensor: Any, group: Any = None) -> None:
        return None

    def barrier(self) -> str:
        return "met"


class Event:
    """A clock of ours: every event happens 2 ms after the one before; none is known to have happened before `now`."""

    ticks = 0
    now = 0
    waited = 0

    def record(self) -> None:
        Event.ticks += 2
        self.at = Event.ticks

    def query(self) -> bool:
        return self.at <= Event.now

    def synchronize(self) -> None:
        Event.waited += self.at > Event.now

    def elapsed_time(self, later: Event) -> float:
        return later.at - self.at


@pytest.fixture
def backend() -> Backend:
    return Backend()


def installed(backend: Backend, **options: Any) -> Traffic:
    meter = Traffic(**options)
    meter.install(backend)
    return meter


def test_bytes_are_those_of_the_whole_message(backend: Backend) -> None:
    meter = installed(backend)
    meter.begin_step()
    backend.all_reduce(torch.zeros(3, 5))
    backend.all_reduce(tensor=torch.zeros(7, dtype=torch.bfloat16))
    backend.reduce_scatter_tensor(torch.zeros(4), torch.zeros(8))
    backend.reduce_scatter_tensor(torch.zeros(4), input_tensor=torch.zeros(8, dtype=torch.float16))
    backend.all_gather([torch.zeros(2), torch.zeros(2)], torch.zeros(2))
    meter.end_step()
    totals = meter.take()
    assert totals.steps == 1
    assert totals.sent_bytes == {"all_reduce": 60 + 14, "reduce_scatter_tensor": 32 + 16, "all_gather": 16}
    assert totals.seconds > 0
    assert meter.take() == (0, 0.0, {})


def test_calls_and_results_are_passed_on(backend: Backend) -> None:
    tensor = torch.zeros(1)
    for meter in (None, installed(backend)):
        if meter:
            meter.begin_step()
        assert backend.all_reduce(tensor, "sum", group="ours") == ("reduced", tensor, "sum", "ours")
        assert backend.barrier() == "met"
    assert backend.all_reduce.__name__ == "all_reduce"


def test_only_steps_count(backend: Backend) -> None:
    meter = installed(backend)
    backend.all_reduce(torch.zeros(1))
    for _ in range(3):
        meter.begin_step()
        backend.all_reduce(torch.zeros(2))
        meter.end_step()
    backend.all_reduce(torch.zeros(4))
    assert meter.take()[::2] == (3, {"all_reduce": 24})


def test_the_wait_for_an_asynchronous_one_counts(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 1.0, 10.0, 14.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(ticks))
    meter = installed(backend)
    meter.begin_step()
    handle = backend.all_reduce(torch.zeros(2), async_op=True)
    assert not handle.is_completed()
    assert handle.wait() == "done"
    assert handle.is_completed()
    assert meter.take() == (0, 1.0 + 4.0, {"all_reduce": 8})


def test_a_second_meter_takes_the_place_of_the_first(backend: Backend) -> None:
    """Otherwise every run of one process would add a layer."""
    first, second = installed(backend), installed(backend)
    first.begin_step()
    second.begin_step()
    backend.all_reduce(torch.zeros(2))
    assert first.take().sent_bytes == {}
    assert second.take().sent_bytes == {"all_reduce": 8}


def test_events_are_read_when_they_have_happened(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within steps nothing waits, however many events there are; `take` does."""
    monkeypatch.setattr(module, "MOST_EVENTS", 4)
    for name in ("ticks", "now", "waited"):
        monkeypatch.setattr(Event, name, 0)
    meter = installed(backend, new_event=Event)
    meter.begin_step()
    for _ in range(10):
        backend.all_reduce(torch.zeros(1))
    assert len(meter._pending) == 10, "none is known to have happened"
    Event.now = 4 * 8  # a call takes two events, 2 ms apart: the first eight are over
    backend.all_reduce(torch.zeros(1))
    assert len(meter._pending) == 4
    assert Event.waited == 0
    meter.end_step()
    assert meter.take().seconds == pytest.approx(11 * 2e-3)
    assert Event.waited == 11 - 8


def test_every_collective_of_deepspeed_is_known() -> None:
    """What moves tensors at the backend of this release; object lists and barriers carry no gradients and weights."""
    from deepspeed.comm.torch import TorchBackend

    verbs = (
        "all_",
        "reduce",
        "broadcast",
        "send",
        "recv",
        "isend",
        "irecv",
        "gather",
        "scatter",
        "inference_",
        "batch_",
    )
    named = {name for name in vars(TorchBackend) if name.startswith(verbs)}
    assert named - MESSAGES.keys() == {
        "all_gather_object",
        "broadcast_object_list",
        "gather",
        "scatter",
        "isend",
        "irecv",
        "batch_isend_irecv",
    }
    assert MESSAGES.keys() <= named
