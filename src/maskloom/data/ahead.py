"""A thread that works on the next item while this thread uses the one before.

    items -> thread: reads them, works on each -> at most `most` results wait -> the caller

The thread holds the interpreter's lock for part of its work. A process that feeds a GPU can wait for that and loses nothing. On
a CPU there is nothing to gain: the same cores do the work, and one more thread would disturb those of the matrix products. So
there the work is done in turn.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

ON_CPUS = False
"""Whether a thread works ahead for CPUs too. Tests set it, to try what a run on a GPU does."""


def ahead(
    read: Callable[[Callable[[], bool]], Generator[Item]],
    work: Callable[[Item], Result],
    device: torch.device,
    most: int = 1,
) -> Generator[Result]:
    """`work` of every item, in order. For a CPU each is worked on when it is wanted. The thread ends with the iterator: if you do
    not use it up, close it.

    The first item is read in the caller's thread. Reader processes start there, since only there can signals be held back. Also,
    their loader draws a seed from torch's generator, which dropout uses too.

    Args:
        read: begins to read. Its argument tells whether nobody wants more; then it may end early.
        device: `work` pins memory for it.
        most: results that wait, at most.

    Raises:
        what `read` and `work` raise, at the item that failed.
    """
    if device.type == "cpu" and not ON_CPUS:
        with contextlib.closing(read(lambda: False)) as items:
            for item in items:
                yield work(item)
        return
    over = threading.Event()
    room, ready = threading.Semaphore(most), queue.SimpleQueue[tuple[str, Any]]()
    reader, thread = read(over.is_set), None
    try:
        reading = itertools.chain(list(itertools.islice(reader, 1)), reader)

        def run() -> None:
            try:
                if device.type == "cuda":  # else the thread would use GPU 0, and every rank would take memory there
                    torch.cuda.set_device(device)
                while room.acquire() and not over.is_set():
                    for item in reading:
                        ready.put(("result", work(item)))
                        break
                    else:
                        ready.put(("end", None))
                        return
            except BaseException as error:
                ready.put(("error", error))

        thread = threading.Thread(target=run, name="ahead", daemon=True)
        thread.start()
        while (said := ready.get())[0] == "result":
            room.release()
            yield said[1]
        if said[0] == "error":
            raise said[1]
    finally:
        over.set()
        room.release()
        if (
            thread is not None and thread is not threading.current_thread()
        ):  # it may collect a forgotten generator itself
            thread.join()
        if thread is None or not thread.is_alive():  # a generator that is running cannot be closed
            reader.close()
