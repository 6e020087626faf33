"""Processes that start clean and at once, and end with those that they work for."""

from __future__ import annotations

import ast
import atexit
import ctypes
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, current_process, forkserver, get_context, parent_process, resource_tracker
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from pathlib import Path
from types import TracebackType
from typing import Any

from maskloom import extensions
from maskloom.errors import UserError

JOB_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""What launchers, schedulers and terminals send to all processes of a job at once."""
PR_SET_PDEATHSIG, PR_GET_PDEATHSIG = 1, 2  # of <sys/prctl.h>
KINDLY_S = 1.0
"""For processes that are asked to end, before they are killed."""
KILLED_S = 10.0
"""Longest wait for one that was killed: it may hang in a file system that does not answer."""
LONGEST_SOCKET_PATH = 107
"""Bytes, of <sys/un.h>."""
SOCKET_NAME = len("/pymp-12345678/listener-12345678")
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
WANT_OF_MEMORY = "a process was killed, most likely for want of memory"
IMPORTED_IN = os.getpid()  # of a process that was forked from a server: the server's, for it imports this module first


def clean_forks(*modules: str) -> ForkServerContext:
    """A context whose processes fork from a server that has imported `modules` and the user's modules (`--import`); nothing else
    has happened in it.

    A fork of this process, which may hold CUDA, NCCL and gloo threads, could deadlock; a fresh interpreter for every
    process would import for seconds.

    Raises:
        UserError: there is no folder for the server's socket, or `refuse_unguarded_main`.
    """
    refuse_unguarded_main()
    _place_sockets()
    context = get_context("forkserver")
    context.set_forkserver_preload([*modules, *extensions.named()])
    return context


def refuse_unguarded_main() -> None:
    """See that a process of `clean_forks` may import the program's main module again, as multiprocessing has it do.

    A script that starts such processes outside of `if __name__ == "__main__":` would start them again in each of them. A script
    from standard input cannot be imported. Nothing is imported for a notebook, a prompt or `python -c`.

    Raises:
        UserError: the main module is such a script.
    """
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if file is None:
        return
    try:
        tree = ast.parse(Path(file).read_bytes())
    except (OSError, SyntaxError):
        if getattr(main, "__spec__", None) is not None:  # from an archive, which is imported by name
            return
        raise UserError(
            f"reader processes import the program again, and this one ({file}) is not in a file: save it as a .py file, with "
            'its start below `if __name__ == "__main__":`, or read without such processes (workers=0)'
        ) from None
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame and not (frame.f_globals is vars(main) and frame.f_code.co_name == "<module>"):
        frame = frame.f_back
    line = frame.f_lineno if frame and frame.f_code.co_filename == file else 0
    for statement in tree.body:
        if statement.lineno <= line <= (statement.end_lineno or 0) and not _is_guard(statement):
            raise UserError(
                f"{file}, line {line}: reader processes import this script again, and would run this line too. Put what "
                'starts the work below `if __name__ == "__main__":`, or read without such processes (workers=0)'
            )


def _is_guard(statement: ast.stmt) -> bool:
    """Whether a statement is `if __name__ == "__main__":`, or asks for the name in another way."""
    if not isinstance(statement, ast.If):
        return False
    return any(isinstance(node, ast.Name) and node.id == "__name__" for node in ast.walk(statement.test))


class Deaf:
    """Processes of `clean_forks` that start in a `with` block and ignore all signals but SIGKILL.

    The process that starts them ends them, by `end`. The interpreter's end calls it too, for it would wait for them for ever.

    A signal to a whole job is meant for its leaders: they stop, and end their processes. The server that forks all of them is
    started with the signals blocked, and its forks inherit that. Signals to this process wait until the block ends: nobody would
    know of a process that is half started. (In the main thread only; handlers do not run in others.) All processes that start
    within the block are taken for its own: use one block at a time.
    """

    def __init__(self) -> None:
        self._children: list[BaseProcess] = []
        self._others: set[BaseProcess] = set()
        self._before: set[int] = set()
        self._later = _Later()

    def __enter__(self) -> Deaf:
        assert not self._children, "entered before"
        self._others = set(active_children())
        self._later.begin()
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, JOB_SIGNALS)
        try:
            resource_tracker.ensure_running()  # unblocks some of them afterwards: first, and by itself
            signal.pthread_sigmask(signal.SIG_BLOCK, JOB_SIGNALS)
            forkserver.ensure_running()
        except BaseException:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._before)
            self._later.end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._children = [child for child in active_children() if child not in self._others]
        atexit.register(self.end)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)
        if kind is not None:
            self.end()
        try:
            self._later.end()
        except BaseException:  # Ctrl-C
            self.end()
            raise
        if isinstance(error, EOFError | ConnectionError):  # from the server that they are forked from
            raise ChildProcessError(f"reader processes could not be started: {WANT_OF_MEMORY}") from error

    def end(self, ask: Callable[[], None] = lambda: None) -> None:
        """End the processes that are left. `ask` tells them to end, and may wait for them; after a moment they are killed."""
        children, self._children = self._children, []
        if not children:  # also amid the interpreter's end, when modules are no longer there
            return
        atexit.unregister(self.end)
        if not any(child.is_alive() for child in children):
            return
        late = threading.Timer(KINDLY_S, _kill, [children])
        late.start()
        try:
            ask()
        finally:
            late.cancel()
            _kill(children)
        for child in children:
            child.join(KILLED_S)


class _Later:
    """Signals that come between `begin` and `end` are handled at the end.

    Blocking them in the main thread is not enough. A signal to the process reaches any thread that does not block it, such as one
    of torch's, and Python then calls the handler in the main thread.
    """

    def __init__(self) -> None:
        self._handlers: dict[signal.Signals, Any] = {}
        self._came: list[int] = []

    def begin(self) -> None:
        if threading.current_thread() is not threading.main_thread():  # handlers do not run in others
            return
        for number in JOB_SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._handlers[number] = signal.signal(number, self._note)

    def end(self) -> None:
        handlers, self._handlers = self._handlers, {}
        for number, handler in handlers.items():
            signal.signal(number, handler)
        came, self._came = list(dict.fromkeys(self._came)), []
        if not came:
            return
        told = signal.set_wakeup_fd(-1)  # who listens there was told when they came: twice, they would count as two
        try:
            _raise_each(came)
        finally:
            signal.set_wakeup_fd(told, warn_on_full_buffer=False)

    def _note(self, number: int, frame: object) -> None:
        self._came.append(number)


def _raise_each(numbers: list[int]) -> None:
    """Raise signals one after the other, even if a handler raises."""
    if numbers:
        try:
            signal.raise_signal(numbers[0])
        finally:
            _raise_each(numbers[1:])


def _kill(children: Iterable[BaseProcess]) -> None:
    for child in children:
        child.kill()


def end_with_owner(*_: object) -> None:
    """Called in a process of `clean_forks`: end it at once when the process that it works for ends, or the server.

    To watch the server alone is not enough: it lives as long as any of its processes, which hold the pipe that it watches.
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
    """Have the kernel send this process a signal when the thread that started it ends. An earlier request stays."""
    if sys.platform != "linux":
        return
    prctl, told = ctypes.CDLL(None, use_errno=True).prctl, ctypes.c_int()
    prctl(PR_GET_PDEATHSIG, ctypes.byref(told), 0, 0, 0)
    if not told.value:
        prctl(PR_SET_PDEATHSIG, int(with_signal), 0, 0, 0)


def end_children() -> None:
    """Kill the processes that this one started with multiprocessing, and remove their server's socket. For an end at once, at
    which the interpreter does nothing."""
    _kill(active_children())
    if _sockets is not None and _sockets.still_active():
        _sockets()


_sockets: Finalize | None = None


def _place_sockets() -> None:
    """Give multiprocessing a folder for its sockets. Its own choice, below TMPDIR, may be too long for the path of a socket.

    A socket without a path (Linux' abstract ones) does not help: every user of the machine could connect, and run code as us.
    """
    global _sockets
    settings = getattr(current_process(), "_config")  # noqa: B009  # as multiprocessing.util.get_temp_dir keeps it
    if "tempdir" in settings:
        return
    folders = [temporary_folder(), *map(Path, SHORT_FOLDERS)]
    short = [folder for folder in folders if len(os.fsencode(folder)) + SOCKET_NAME <= LONGEST_SOCKET_PATH]
    usable = [folder for folder in short if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)]
    if not usable:
        raise UserError(
            f"reader processes need a folder for a socket: {folders[0]} is longer than {LONGEST_SOCKET_PATH - SOCKET_NAME} "
            f"bytes, and none of {', '.join(SHORT_FOLDERS)} can be written to: set TMPDIR to a shorter path"
        )
    folder = tempfile.mkdtemp(prefix="pymp-", dir=usable[0])
    _sockets = Finalize(None, shutil.rmtree, args=(folder,), kwargs={"ignore_errors": True}, exitpriority=-100)
    settings["tempdir"] = folder


def temporary_folder() -> Path:
    """Where temporary files go.

    Raises:
        UserError: TMPDIR is not a folder, or cannot be written to. Python would take another one, and other programs would
            fail.
    """
    chosen = os.environ.get("TMPDIR")
    if chosen and not Path(chosen).is_dir():
        raise UserError(f"TMPDIR={chosen} is not a folder: create it, or set TMPDIR to another one")
    try:
        if chosen:
            Path(tempfile.mkdtemp(dir=chosen)).rmdir()
    except OSError as error:
        raise UserError(f"TMPDIR={chosen}: {error.strerror}: set TMPDIR to a folder that can be written to") from None
    try:
        return Path(tempfile.gettempdir())
    except OSError as error:
        raise UserError(f"no folder for temporary files: {error.strerror}. Set TMPDIR to one") from None


class Pool:
    """A `ProcessPoolExecutor` whose processes end with this one, even if it is killed: they would wait for ever.

    Args:
        modules: imported once, in the server that the processes fork from.
    """

    def __init__(self, processes: int, *modules: str) -> None:
        self.executor = ProcessPoolExecutor(processes, mp_context=clean_forks(*modules), initializer=_begin)

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
            raise ChildProcessError(f"{WANT_OF_MEMORY}: start the same command again, with fewer --processes") from None


def _begin() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # every core has a process already
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once and without a traceback
    end_with_owner()
