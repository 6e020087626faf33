"""Where the time of a run goes.

    Traffic      what DeepSpeed sends: bytes and seconds of its collectives, by kind
    OwnTime      a step's time on this rank: sending, waiting for other ranks, and the rank's own
    Stragglers   ranks whose own time is far above the median's: all others wait for them
    TimeLeft     how long the run still takes, from what its steps took

**Traffic.** All of DeepSpeed's communication goes through the methods of one object, its `TorchBackend`
(`deepspeed.comm.comm.cdb`). `Traffic.install` puts a wrapper around each that moves tensors. DeepSpeed's own `comms_logger`
sits at the same place, but synchronises the device after every call: what it measures is a run that it has slowed down.

*Bytes* are those of the whole message, whatever the algorithm makes of it: of the tensor that is reduced or broadcast, of
what goes into a reduce-scatter, of what comes out of a gather. A ring of P ranks sends 2 (P - 1) / P times them for an
all-reduce and (P - 1) / P times for a reduce-scatter or a gather, from each rank. They are counted when the collective is issued.

*Seconds*, on a CPU: the time for which the call blocks, and for asynchronous ones the wait for its handle. On a GPU
calls return at once. So it is the time between two events on the stream that the collective was issued from, which stands still
until the collective is over. For asynchronous ones the events stand around the wait. Both include waiting for slower ranks.
Under `engine.overlap` that stream is one of DeepSpeed's own, and its time passes beside the backward's: seconds of
communication are then not seconds that the step takes longer. Events are read when a line is logged, long after they
happened: nothing here waits within a step.

**Own time** is what a rank spends neither sending nor waiting. The time of evaluations and saves does not belong to a step.

**Time left** leaves out the start of a process and the first step after it (or after a roll-back, or of a phase): they load,
compile and warm up. Step time is taken per token slot and phase: phases differ in rows and slots, and a batch can grow. A phase
that has not begun is taken to be as fast per slot as the one measured last. Evaluations and checkpoints are counted apart, as
seconds a step.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch

from maskloom.data.plan import PhasePlan, place_in
from maskloom.distributed import World, gather_objects, sum_over_ranks
from maskloom.progress import warn

P = ParamSpec("P")
R = TypeVar("R")
MESSAGES = {
    "all_reduce": ("tensor", 0),
    "all_reduce_coalesced": ("tensors", 0),
    "inference_all_reduce": ("tensor", 0),
    "reduce": ("tensor", 0),
    "reduce_scatter": ("input_list", 1),
    "reduce_scatter_tensor": ("input_tensor", 1),
    "all_gather": ("tensor_list", 0),
    "all_gather_into_tensor": ("output_tensor", 0),
    "all_gather_base": ("output_tensor", 0),
    "all_gather_coalesced": ("output_tensors", 0),
    "broadcast": ("tensor", 0),
    "all_to_all_single": ("input", 1),
    "all_to_all": ("input_tensor_list", 1),
    "send": ("tensor", 0),
    "recv": ("tensor", 0),
}
"""Method of the backend -> name and place of the argument that is the message."""
MOST_EVENTS = 4096  # pairs that are held; beyond it those that happened are read, which takes no waiting
SLOW = 1.5
"""Times the median, from which on a rank is slow."""
SLOW_LEAST_S = 0.01
"""And so many seconds a step above it: a step of milliseconds is uneven by nature."""
SLOW_LINES = 3
"""Logged lines in a row."""


class Totals(NamedTuple):
    """What was sent in some steps."""

    steps: int
    seconds: float
    sent_bytes: dict[str, int]
    """By kind of collective, of what this rank took part in."""


class Traffic:
    """The counters of this process. It counts between `begin_step` and `end_step` only: not what the start, evaluations and
    checkpoints send."""

    def __init__(self, new_event: Callable[[], Any] | None = None) -> None:
        """`new_event` makes a `torch.cuda.Event` that can be timed; None takes the time of the call."""
        self._new_event = new_event
        self.around: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
        """What every call that is timed runs within: a mark of a profile."""
        self._counts = False
        self._pending: deque[tuple[Any, Any]] = deque()
        self._clear()

    def install(self, backend: Any) -> None:
        """Wrap the collectives of a `TorchBackend`; a meter that was there before counts no more."""
        for kind, (argument, place) in MESSAGES.items():
            method = getattr(backend, kind, None)
            if method is not None:
                setattr(backend, kind, self._wrapped(kind, getattr(method, "uncounted", method), argument, place))

    def begin_step(self) -> None:
        self._counts = True

    def end_step(self) -> None:
        self._counts = False
        self._steps += 1

    def meter(self) -> Traffic:
        """Another meter, which takes the time of calls in the same way."""
        other = Traffic(self._new_event)
        other.around = self.around
        return other

    def timed(self, call: Callable[P, R], *args: P.args, **options: P.kwargs) -> R:
        """The result of a call, the time of which counts."""
        return self._timed(call, *args, **options)

    def take(self) -> Totals:
        """What was sent since the last call; waits for collectives that are under way."""
        while self._pending:
            self._settle()
        totals = Totals(self._steps, self._seconds, dict(self._bytes))
        self._clear()
        return totals

    def _clear(self) -> None:
        self._steps, self._seconds = 0, 0.0
        self._bytes: Counter[str] = Counter()

    def _wrapped(self, kind: str, method: Callable[..., Any], argument: str, place: int) -> Callable[..., Any]:
        @functools.wraps(method)
        def counted(*args: Any, **options: Any) -> Any:
            if not self._counts:
                return method(*args, **options)
            self._bytes[kind] += _bytes_of(args[place] if place < len(args) else options[argument])
            handle = self._timed(method, *args, **options)
            return _Handle(handle, self) if hasattr(handle, "wait") else handle

        counted.uncounted = method  # type: ignore[attr-defined]
        return counted

    def _timed(self, call: Callable[P, R], *args: P.args, **options: P.kwargs) -> R:
        if self._new_event is None:
            began_s = time.perf_counter()
            with self.around():
                result = call(*args, **options)
            self._seconds += time.perf_counter() - began_s
            return result
        began, ended = self._new_event(), self._new_event()
        began.record()
        with self.around():
            result = call(*args, **options)
        ended.record()
        self._pending.append((began, ended))
        while len(self._pending) > MOST_EVENTS and self._pending[0][1].query():
            self._settle()
        return result

    def _settle(self) -> None:
        began, ended = self._pending.popleft()
        ended.synchronize()
        self._seconds += began.elapsed_time(ended) / 1e3


class _Handle:
    """The handle of an asynchronous collective; the time of its wait counts."""

    def __init__(self, handle: Any, traffic: Traffic) -> None:
        self._handle, self._traffic = handle, traffic

    def wait(self, *args: Any, **options: Any) -> Any:
        return self._traffic._timed(self._handle.wait, *args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)


def _bytes_of(message: torch.Tensor | Iterable[torch.Tensor]) -> int:
    if isinstance(message, torch.Tensor):
        return message.numel() * message.element_size()
    return sum(_bytes_of(part) for part in message)


class Spent(NamedTuple):
    """Since the last logged line, on this rank."""

    sent: Totals
    own_s: float
    """Seconds a step."""


class OwnTime:
    """The clock of this rank, from one logged line to the next. Its constructor is a collective: every rank makes one."""

    def __init__(self, traffic: Traffic, world: World, device: torch.device) -> None:
        self.traffic, self.world, self.device = traffic, world, device
        self._waits = traffic.meter()
        self._stragglers = Stragglers(gather_objects(socket.gethostname(), world), world.is_first)
        self._paused_s = 0.0
        self.mark()

    def mark(self) -> None:
        """Begin behind a logged line."""
        self._marked_s = time.perf_counter()

    def waiting(self, call: Callable[P, R], *args: P.args, **options: P.kwargs) -> R:
        """The result of a call that waits for other ranks."""
        return self._waits.timed(call, *args, **options)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """For the block time belongs to no step."""
        began_s = time.perf_counter()
        yield
        self._paused_s += time.perf_counter() - began_s

    def take(self) -> Spent:
        """What was sent since the last logged line, and this rank's own time."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elapsed_s = time.perf_counter() - self._marked_s - self._paused_s
        self._paused_s = 0.0
        sent = self.traffic.take()
        own_s = elapsed_s - sent.seconds - self._waits.take().seconds
        return Spent(sent, max(own_s, 0.0) / max(sent.steps, 1))

    def values(self, spent: Spent) -> dict[str, float]:
        """A step's seconds of communication, the mean over ranks, bytes, which are the same on every rank, and how much the
        slowest rank holds the others up. Every rank calls it."""
        sent, steps = spent.sent, max(spent.sent.steps, 1)
        mine = torch.zeros(1 + self.world.size, dtype=torch.float64)
        mine[0], mine[1 + self.world.rank] = sent.seconds, spent.own_s
        seconds, *all_own_s = sum_over_ranks(mine.to(self.device)).tolist()
        kinds = {f"communication_bytes_{kind}": count / steps for kind, count in sorted(sent.sent_bytes.items())}
        return {
            "straggler_ratio": self._stragglers.add(all_own_s),
            "communication_s": seconds / self.world.size / steps,
            "communication_bytes": sum(kinds.values()),
            **kinds,
        }


class Stragglers:
    """Looks at every logged line; warns once when a rank has been slow for several lines in a row.

    Args:
        hosts: of the ranks, in their order.
        speaks: whether it is this process that warns.
    """

    def __init__(self, hosts: Sequence[str], speaks: bool) -> None:
        self.hosts, self.speaks = hosts, speaks
        self._slow_lines = [0] * len(hosts)

    def add(self, own_s: Sequence[float]) -> float:
        """Take each rank's own seconds a step; returns the largest as a multiple of the median (of two, the faster one)."""
        median_s = statistics.median_low(own_s)
        for rank, seconds in enumerate(own_s):
            is_slow = seconds > SLOW * median_s and seconds > median_s + SLOW_LEAST_S
            self._slow_lines[rank] = self._slow_lines[rank] + 1 if is_slow else 0
            if self.speaks and self._slow_lines[rank] == SLOW_LINES:
                warn(
                    f"rank {rank} on {self.hosts[rank]} is slow: {seconds:.3g} s a step of its own, where half the ranks take "
                    f"{median_s:.3g} s or less; all wait for it"
                )
        return max(own_s) / median_s if median_s else 1.0


class TimeLeft:
    """Measures the steps of this process; `seconds` says what is left.

    Attributes:
        total_steps: of the run.
    """

    def __init__(self, phases: Sequence[PhasePlan], lanes: int) -> None:
        self.phases, self.lanes = phases, lanes
        self.total_steps = sum(phase.steps for phase in phases)
        self._step_s = [0.0] * len(phases)  # of the steps measured, by phase
        self._slots = [0] * len(phases)
        self._steps, self._paused_s = 0, 0.0
        self._newest: int | None = None  # phase that was measured last
        self.begin()

    def begin(self) -> None:
        """What comes next is a first step: the start, or the return after a roll-back."""
        self._step, self._ended_s = -1, 0.0

    def stepped(self, step: int) -> None:
        """Step number `step`, which counts from 1, is done."""
        now_s = time.perf_counter()
        phase, done = place_in(self.phases, step - 1)
        if step == self._step + 1 and done:
            self._step_s[phase] += now_s - self._ended_s
            self._slots[phase] += self._slots_before(phase, done + 1) - self._slots_before(phase, done)
            self._newest = phase
        self._steps += 1
        self._step, self._ended_s = step, now_s

    def paused(self, seconds: float) -> None:
        """An evaluation or a checkpoint after the step took so long."""
        self._paused_s += seconds
        self._ended_s += seconds

    def seconds(self, step: int) -> float | None:
        """From the end of step number `step` to the end of the run; None until a step was measured."""
        if step >= self.total_steps:
            return 0.0
        if self._newest is None:
            return None
        left_s = self._paused_s / self._steps * (self.total_steps - step)
        first, done = place_in(self.phases, step)
        for phase in range(first, len(self.phases)):
            measured = phase if self._slots[phase] else self._newest
            slots = self._slots_before(phase, self.phases[phase].steps) - self._slots_before(phase, done)
            left_s += slots * self._step_s[measured] / self._slots[measured]
            done = 0
        return left_s

    def _slots_before(self, phase: int, done: int) -> int:
        """Token slots of a phase's first `done` steps."""
        return self.lanes * self.phases[phase].seq_len * self.phases[phase].rows_before(done)
