"""Processes that work for another one: where their server's socket stands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from maskloom.processes import LONGEST_SOCKET_PATH, SOCKET_NAME
from maskloom.program import EXIT_INTERRUPTED

POOL = """
from maskloom.processes import Pool
from maskloom.program import run_program
def main():
    with Pool(1, "maskloom.processes") as pool:
        print(*pool.map(abs, [-1, -2]))
    return 0
if __name__ == "__main__":
    run_program("it", main)
"""


def pool_below(folder: object, script: Path) -> subprocess.CompletedProcess[str]:
    script.write_text(POOL)
    environment = {**os.environ, "TMPDIR": str(folder)}
    return subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def folder_of(length: int, parent: Path, letter: str = "x") -> Path:
    """A folder whose path has so many bytes."""
    room, size = length - len(os.fsencode(parent)), len(letter.encode())
    path = str(parent)
    while room:
        name = min(room - 1, 200)
        if 0 < room - 1 - name < 2:
            name -= 2
        path += "/" + letter * (name // size) + "y" * (name % size)
        room -= name + 1
    made = Path(path)
    made.mkdir(parents=True)
    assert len(os.fsencode(made)) == length
    return made


@pytest.mark.parametrize("letter", ["x", "é"])
@pytest.mark.parametrize(
    "length", [LONGEST_SOCKET_PATH - SOCKET_NAME, LONGEST_SOCKET_PATH - SOCKET_NAME + 1, LONGEST_SOCKET_PATH + 1, 300]
)
def test_a_folder_for_temporary_files_may_have_any_length(length: int, letter: str, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as base:  # pytest's may be too long
        folder = folder_of(length, Path(base), letter)
        done = pool_below(folder, tmp_path / "script.py")
        assert (done.returncode, done.stdout, done.stderr) == (0, "1 2\n", "")
        assert not list(folder.iterdir()), "the socket's folder is left"


@pytest.mark.parametrize(("what", "message"), [("missing", "is not a folder"), ("file", "is not a folder")])
def test_what_cannot_hold_temporary_files_is_named(what: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = pool_below(tmp_path / what, tmp_path / "script.py")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"it: TMPDIR={tmp_path / what} {message}: ")
    assert done.stderr.count("\n") == 1


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    done = pool_below("/proc", tmp_path / "script.py")  # nobody writes there, not even root
    assert done.returncode == 1
    assert done.stderr.startswith("it: TMPDIR=/proc: ")


AMID_A_START = """
import os, signal, sys, threading
from multiprocessing import active_children
from maskloom.processes import Deaf, clean_forks
from maskloom.program import run_program
def main():
    # A signal to a process reaches any thread that does not block it.
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    context = clean_forks("maskloom.processes")
    with Deaf():
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        context.Process(target=abs, args=[1]).start()
        print(len(active_children()), flush=True)
    print("not reached")
    return 0
if __name__ == "__main__":
    run_program("it", main)
"""


@pytest.mark.parametrize(
    ("name", "code", "said"), [("SIGINT", EXIT_INTERRUPTED, "it: interrupted\n"), ("SIGTERM", -signal.SIGTERM, "")]
)
def test_a_signal_amid_the_start_of_processes_waits_until_they_are_known(
    name: str, code: int, said: str, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(AMID_A_START)
    done = subprocess.run([sys.executable, script, name], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "1\n", said)


STOPPED_AMID_A_START = """
import os, signal, sys, threading, time
from maskloom.processes import Deaf, clean_forks
from maskloom.train.rank import stopping
threading.Thread(target=threading.Event().wait, daemon=True).start()
clean_forks("maskloom.processes")
with stopping.Requests({}) as requests:
    with Deaf():
        os.kill(os.getpid(), signal.SIGINT)
        requests.wait(10)
        time.sleep(stopping.SECOND_INTERRUPT_S + 0.1)
    requests.wait(0.2)
    print(requests.reason, requests.insists)
"""


def test_a_signal_that_waited_is_one_to_who_listens() -> None:
    """Ctrl-C while readers start, for longer than it takes to insist."""
    command = [sys.executable, "-c", STOPPED_AMID_A_START]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "SIGINT False\n", "")


SEVERAL = """
import os, signal
from maskloom.processes import Deaf, clean_forks
def note(number, frame):
    print(signal.Signals(number).name, flush=True)
    raise KeyboardInterrupt
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
    signal.signal(number, note)
clean_forks("maskloom.processes")
try:
    with Deaf():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            os.kill(os.getpid(), number)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_each_of_several_signals_is_handled_whatever_the_handlers_raise() -> None:
    done = subprocess.run([sys.executable, "-c", SEVERAL], capture_output=True, text=True, timeout=120, check=False)
    said = done.stdout.split()
    assert (sorted(said[:-1]), said[-1], done.stderr) == (["SIGINT", "SIGTERM", "SIGUSR2"], "interrupted", "")
