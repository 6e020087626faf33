"""Where the time goes: the meter of collectives, a rank's own time, slow ranks, and the time that is left."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from maskloom.data.plan import Growth, PhasePlan
from maskloom.distributed import World
from maskloom.train import timing
from maskloom.train.timing import MESSAGES, SLOW_LINES, OwnTime, Spent, Stragglers, TimeLeft, Totals, Traffic


class Clock:
    """Stands still until it is moved on."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def perf_counter(self) -> float:
        return self.now_s

    def pass_by(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


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
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(ticks))
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
    monkeypatch.setattr(timing, "MOST_EVENTS", 4)
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


def take_steps(meter: Traffic, count: int) -> None:
    for _ in range(count):
        meter.begin_step()
        meter.end_step()


def test_waiting_sending_and_pauses_are_not_a_ranks_own(clock: Clock) -> None:
    meter = Traffic()
    mine = OwnTime(meter, World(), torch.device("cpu"))
    take_steps(meter, 4)
    clock.pass_by(2.0)
    mine.waiting(clock.pass_by, 16.0)
    meter.timed(clock.pass_by, 32.0)
    with mine.paused():
        clock.pass_by(64.0)
    spent = mine.take()
    assert spent == Spent(Totals(4, 32.0, {}), 2.0 / 4)
    assert mine.values(spent) == {"straggler_ratio": 1.0, "communication_s": 32.0 / 4, "communication_bytes": 0}
    clock.pass_by(8.0)
    mine.mark()
    take_steps(meter, 1)
    clock.pass_by(3.0)
    assert mine.take() == Spent(Totals(1, 0.0, {}), 3.0)


def test_bytes_are_those_of_a_step() -> None:
    mine = OwnTime(Traffic(), World(), torch.device("cpu"))
    values = mine.values(Spent(Totals(2, 1.0, {"broadcast": 10, "all_reduce": 30}), 0.5))
    assert list(values.items())[2:] == [
        ("communication_bytes", 20.0),
        ("communication_bytes_all_reduce", 15.0),
        ("communication_bytes_broadcast", 5.0),
    ]


def lines(own_s: list[float], count: int, speaks: bool = True) -> float:
    stragglers = Stragglers(["a", "b", "c"][: len(own_s)], speaks)
    return [stragglers.add(own_s) for _ in range(count)][-1]


def test_a_slow_rank_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines([0.2, 0.5, 0.2], SLOW_LINES + 5) == pytest.approx(2.5)
    said = capsys.readouterr().err
    assert said.count("WARNING") == 1
    assert "rank 1 on b is slow: 0.5 s a step of its own, where half the ranks take 0.2 s or less" in said


def test_of_two_ranks_the_slower_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines([0.2, 0.8], SLOW_LINES) == pytest.approx(4)
    assert "rank 1 on b" in capsys.readouterr().err


@pytest.mark.parametrize("own_s", [[0.2, 0.29, 0.2], [0.001, 0.009, 0.001], [0.0, 0.0, 0.0]])
def test_little_differences_say_nothing(own_s: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    lines(own_s, 2 * SLOW_LINES)
    assert not capsys.readouterr().err


def test_a_moment_says_nothing_and_others_stay_silent(capsys: pytest.CaptureFixture[str]) -> None:
    lines([0.2, 0.5], SLOW_LINES - 1)
    lines([0.2, 0.5], SLOW_LINES, speaks=False)
    stragglers = Stragglers(["a", "b"], True)
    for slow in (0.5, 0.5, 0.2, 0.5, 0.5):
        stragglers.add([0.2, slow])
    assert not capsys.readouterr().err


def run(left: TimeLeft, clock: Clock, steps: range, seconds: float) -> None:
    for step in steps:
        clock.now_s += seconds
        left.stepped(step)


ONE = (PhasePlan(steps=100, seq_len=32, lane_rows=1),)


def test_nothing_is_known_before_the_second_step(clock: Clock) -> None:
    left = TimeLeft(ONE, lanes=4)
    assert left.seconds(0) is None
    run(left, clock, range(1, 2), 60.0)
    assert left.seconds(1) is None
    run(left, clock, range(2, 3), 3.0)
    assert left.seconds(2) == pytest.approx(98 * 3.0)


@pytest.mark.parametrize("start_s", [0.0, 5.0, 3600.0])
def test_neither_the_start_nor_the_first_step_counts(clock: Clock, start_s: float) -> None:
    """A resume at step 60: the checkpoint is loaded, the first step compiles, and 20 more take 2 s each."""
    left = TimeLeft(ONE, lanes=4)
    clock.now_s += start_s
    run(left, clock, range(61, 62), 300.0)
    run(left, clock, range(62, 82), 2.0)
    assert left.seconds(81) == pytest.approx(19 * 2.0)


def test_at_the_end_nothing_is_left(clock: Clock) -> None:
    left = TimeLeft(ONE, lanes=4)
    assert left.seconds(100) == 0.0
    run(left, clock, range(99, 101), 2.0)
    assert left.seconds(100) == 0.0


def test_a_roll_back_does_not_count(clock: Clock) -> None:
    left = TimeLeft(ONE, lanes=4)
    run(left, clock, range(1, 51), 2.0)
    clock.now_s += 500.0
    left.begin()
    run(left, clock, range(41, 42), 90.0)  # compiles again
    assert left.seconds(41) == pytest.approx(59 * 2.0)
    run(left, clock, range(42, 51), 2.0)
    assert left.seconds(50) == pytest.approx(50 * 2.0)


def test_evaluations_are_added_as_they_came(clock: Clock) -> None:
    """Every tenth step 30 s of evaluation: 3 s a step."""
    left = TimeLeft(ONE, lanes=4)
    for step in range(1, 21):
        run(left, clock, range(step, step + 1), 2.0)
        pause_s = 0.0 if step % 10 else 30.0
        clock.now_s += pause_s
        left.paused(pause_s)
    assert left.seconds(20) == pytest.approx(80 * (2.0 + 3.0))


def test_phases_to_come_are_weighed_by_their_slots(clock: Clock) -> None:
    """Phase 1 has half the rows of phase 0, four times as long: twice the slots."""
    phases = (PhasePlan(steps=10, seq_len=32, lane_rows=2), PhasePlan(steps=20, seq_len=128, lane_rows=1))
    left = TimeLeft(phases, lanes=4)
    run(left, clock, range(1, 5), 3.0)
    assert left.seconds(4) == pytest.approx(6 * 3.0 + 20 * 6.0)


def test_a_phase_that_was_measured_counts_for_itself(clock: Clock) -> None:
    """The second phase turns out four times as slow, and not twice; its first step compiles."""
    phases = (PhasePlan(steps=10, seq_len=32, lane_rows=2), PhasePlan(steps=20, seq_len=128, lane_rows=1))
    left = TimeLeft(phases, lanes=4)
    run(left, clock, range(1, 11), 3.0)
    run(left, clock, range(11, 12), 100.0)
    assert left.seconds(11) == pytest.approx(19 * 6.0)
    run(left, clock, range(12, 16), 12.0)
    assert left.seconds(15) == pytest.approx(15 * 12.0)
    left.begin()  # back into the first phase, whose own rate is known
    assert left.seconds(5) == pytest.approx(5 * 3.0 + 20 * 12.0)


def test_a_batch_that_grows_takes_longer_later(clock: Clock) -> None:
    """Rows a lane of steps 1 to 10: 1, 1, 2, 2, 3, 3 and then 4 four times (first + done * 3 // 6)."""
    phase = PhasePlan(steps=10, seq_len=32, lane_rows=4, growth=Growth(1, 6))
    rows = [phase.rows_at(done) for done in range(10)]
    assert rows == [1, 1, 2, 2, 3, 3, 4, 4, 4, 4]
    left = TimeLeft((phase,), lanes=4)
    for step in range(1, 5):
        run(left, clock, range(step, step + 1), 0.5 * rows[step - 1])
    assert left.seconds(4) == pytest.approx(0.5 * sum(rows[4:]))
