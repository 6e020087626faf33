"""What DeepSpeed sends: bytes and seconds of its collectives, by kind.

All of DeepSpeed's communication goes through the methods of one object, its `TorchBackend` (`deepspeed.comm.comm.cdb`).
`Traffic.install` puts a wrapper around each that moves tensors. DeepSpeed's own `comms_logger` sits at the same place, but
synchronises the device after every call: what it measures is a run that it has slowed down.

**Bytes** are those of the whole message, whatever the algorithm makes of it: of the tensor that is reduced or broadcast, of
what goes into a reduce-scatter, of what comes out of a gather. A ring of P ranks sends 2 (P - 1) / P times them for an
all-reduce and (P - 1) / P times for a reduce-scatter or a gather, from each rank. They are counted when the collective is issued.

**Seconds**, on a CPU: the time for which the call blocks, and for asynchronous ones the wait for its handle. On a GPU, where
calls return at once: the time between two events on the stream that the collective was issued from, which stands still
until the collective is over; for asynchronous ones between two events around the wait. Both include waiting for slower ranks.
Under `engine.overlap` that stream is one of DeepSpeed's own, and its time passes beside the backward's: seconds of
communication are then not seconds that the step takes longer. Events are read where a line is logged, when they
have long happened: nothing here waits within a step.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch

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
        self.around: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
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

    def timed(self, call: Callable[..., Any], *args: Any) -> Any:
        """The result of a call, the time of which counts."""
        return self._timed(call, *args)

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

    def _timed(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
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


def _bytes_of(message: Any) -> int:
    if isinstance(message, torch.Tensor):
        return message.numel() * message.element_size()
    return sum(_bytes_of(part) for part in message)
