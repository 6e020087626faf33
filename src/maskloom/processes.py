"""Processes that start clean and at once, and end with those that they work for."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, forkserver, get_context, parent_process, resource_tracker
from multiprocessing.context import ForkServerContext
from typing import Any

JOB_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""What launchers, schedulers and terminals send to all processes of a job at once."""
PR_SET_PDEATHSIG, PR_GET_PDEATHSIG = 1, 2  # of <sys/prctl.h>
IMPORTED_IN = os.getpid()  # of a process that was forked from a server: the server's, for it imports this module first


def clean_forks(module: str) -> ForkServerContext:
    """A context whose processes fork from a server that has imported `module` and nothing else has happened in.

    A fork of this process, which may hold CUDA, NCCL and gloo threads, could deadlock; a fresh interpreter for every
    process would import for seconds.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([module])
    return context


@contextlib.contextmanager
def deaf_processes() -> Iterator[None]:
    """Processes of `clean_forks` that start for the first time in the block hear no signal but SIGKILL.

    A signal to a whole job is for those who lead it: they stop, and end their processes. The server that all are forked from
    is started with the signals blocked, and blocked they stay in all of them. What comes for this process waits meanwhile.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, JOB_SIGNALS)
    try:
        resource_tracker.ensure_running()  # unblocks some of them afterwards: first, and by itself
        signal.pthread_sigmask(signal.SIG_BLOCK, JOB_SIGNALS)
        forkserver.ensure_running()
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_owner(*_: object) -> None:
    """Called in a process of `clean_forks`: end it at once when the process that it works for ends, or the server.

    The server alone would not do: it lives as long as any of its processes, which hold the pipe that it watches.
    """
    owner = parent_process()
    assert owner is not None

    def watch() -> None:
        owner.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    end_with_parent(signal.SIGKILL)
    if IMPORTED_IN not in (os.getpid(), os.getppid()):  # gone before
        os._exit(1)


def end_with_parent(with_signal: signal.Signals) -> None:
    """Have the system send this process a signal when the thread that started it ends, however that comes about; unless it has
    been told to send another one."""
    if sys.platform != "linux":
        return
    prctl, told = ctypes.CDLL(None, use_errno=True).prctl, ctypes.c_int()
    prctl(PR_GET_PDEATHSIG, ctypes.byref(told), 0, 0, 0)
    if not told.value:
        prctl(PR_SET_PDEATHSIG, int(with_signal), 0, 0, 0)


def end_children() -> None:
    """Kill what processes this one started with multiprocessing and are left: the interpreter waits for them at its end, and
    they hear nothing else."""
    for child in active_children():
        child.kill()


class Pool:
    """A `ProcessPoolExecutor` whose processes do not outlive this one where it is killed: they would wait for ever.

    Args:
        module: imported once, in the server that the processes fork from.
    """

    def __init__(self, processes: int, module: str) -> None:
        self.executor = ProcessPoolExecutor(processes, mp_context=clean_forks(module), initializer=_begin)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.executor.shutdown(cancel_futures=True)

    def map(self, function: Callable[..., Any], *arguments: Iterable[Any]) -> Iterator[Any]:
        """As `map`, in order.

        Raises:
            ChildProcessError: a process was killed.
        """
        try:
            yield from self.executor.map(function, *arguments)
        except BrokenProcessPool:
            raise ChildProcessError(
                "a process was killed, most likely for want of memory: start the same command again, with fewer --processes"
            ) from None


def _begin() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # every core has a process already
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once and without a traceback
    end_with_owner()
