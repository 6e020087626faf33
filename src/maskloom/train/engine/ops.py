"""DeepSpeed's compiled operators at the start of a run: one rank of a machine builds while the others wait, and no build that
was killed holds anyone up.

torch.utils.cpp_extension marks a build by a file `lock` in the operator's folder, and whoever finds it waits until it is gone.
A process that is killed while it builds leaves it there: every later start waits for ever, without a word. So a lock of ours,
which ends with its process, is held around the build, and while it is held a `lock` that no process has open is removed.

A build by another program on another machine, in a folder that both share, cannot be seen: give such programs their own
TORCH_EXTENSIONS_DIR.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# First and not where it is used: its setuptools refuses to be imported after Python's own distutils.
from torch.utils import cpp_extension

from maskloom.files import NO_LOCKS
from maskloom.progress import say, warn

TORCHS_LOCK = "lock"
OUR_LOCK = "maskloom.lock"


def load_operator(builder: Any, load: Callable[[], Any] | None = None) -> Any:
    """Have one of DeepSpeed's operators ready: loaded, and compiled before if it is not installed.

    Args:
        builder: of `deepspeed.ops.op_builder`, with `name` and `load`.
        load: called instead of `builder.load`.

    Returns:
        the operator's module.
    """
    with building_alone(builder.name):
        return (load or builder.load)()


@contextlib.contextmanager
def building_alone(name: str) -> Iterator[None]:
    """Hold the right to build the extension `name`, after a stale lock of torch's was removed."""
    folder = Path(cpp_extension._get_build_directory(name, verbose=False))
    with (folder / OUR_LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"operator {name}: waiting for another process that builds it in {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        if is_stale(folder / TORCHS_LOCK):
            warn(
                f"removed {folder / TORCHS_LOCK}: a build that was killed left it, and torch would wait for it for ever"
            )
            (folder / TORCHS_LOCK).unlink(missing_ok=True)
        yield


def stale_locks() -> list[Path]:
    """Locks of killed builds among all extensions of this user."""
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root())
    return sorted(lock for depth in ("*", "*/*") for lock in root.glob(f"{depth}/{TORCHS_LOCK}") if is_stale(lock))


def is_stale(lock: Path) -> bool:
    """Whether torch's lock is there although no process of this machine has it open: its maker keeps it open to the end."""
    try:
        sought = lock.stat()
    except FileNotFoundError:
        return False
    for handle in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # a process that ended meanwhile, or another user's
            found = handle.stat()
            if (found.st_dev, found.st_ino) == (sought.st_dev, sought.st_ino):
                return False
    return True
