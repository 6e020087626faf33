"""Work that a thread does on the next item while this thread is busy with the one before.

    items -> thread: reads them, works on each -> at most `most` results wait -> the caller

The thread holds the interpreter's lock for part of its work. Who feeds a GPU waits for that meanwhile, and loses nothing. On a
CPU nothing is gained: the work is the same, wherever it is done, and a thread more beside those of the products makes them
wait for each other. There it is done in turn.
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
"""Whether a thread works ahead for CPUs too: tests let it, to try what a GPU's run does."""


def ahead(
    read: Callable[[Callable[[], bool]], Generator[Item]],
    work: Callable[[Item], Result],
    device: torch.device,
    most: int = 1,
) -> Generator[Result]:
    """`work` of every item, in order, on a CPU each when it is wanted; the thread ends with the iterator: if it is not used up,
    close it.

    The first item is read in the caller's thread: reader processes start there, where signals can be held back meanwhile, and
    their loader draws a seed from torch's generator, which is that of the dropout.

    Args:
        read: begins to read; it is given what says that nobody wants more, at which it may end early.
        device: that `work` pins memory for.
        most: results that wait, at most.

    Raises:
        what `read` and `work` raise, in place of the item that it came for.
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
                if device.type == "cuda":  # a thread begins on the first one, of which every rank would take memory
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
        if thread is not None and thread is not threading.current_thread():  # which may collect a generator left behind
            thread.join()
        if thread is None or not thread.is_alive():  # amid an item it cannot be closed
            reader.close()
