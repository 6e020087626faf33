"""Processes that start clean and at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from multiprocessing.context import ForkServerContext
from typing import Any


def clean_forks(module: str) -> ForkServerContext:
    """A context whose processes fork from a server that has imported `module` and nothing else has happened in.

    A fork of this process, which may hold CUDA, NCCL and gloo threads, could deadlock; a fresh interpreter for every
    process would import for seconds.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([module])
    return context


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
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
